"""Settings of the predictor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

from pydantic import Field

from services.common.settings import ServiceSettings
from services.predictor.model_config import ModelControl


class PredictorSettings(ServiceSettings):
    """What the predictor can be told."""

    predictor_grpc_port: int = Field(default=8001, ge=0, le=65535)
    """Port of both gRPC protocols; 0 takes a free one."""

    predictor_metrics_port: int = Field(default=8002, ge=0, le=65535)
    """Port of the Prometheus metrics; 0 takes a free one."""

    predictor_rest_port: int = Field(default=8000, ge=0, le=65535)
    """Port of the REST form of the open inference protocol; 0 takes a free one."""

    predictor_max_waiting_wafers: int = Field(default=16_384, ge=1)
    """Wafers that wait or run at a time; further calls get RESOURCE_EXHAUSTED."""

    predictor_processes: int = Field(default=1, ge=1, le=64)
    """Processes that share the ports. Several answer more single wafers a second, to callers with several connections;
    each loads all models and gets its share of threads, waiting wafers, calls and cached answers."""

    predictor_threads: int | None = Field(default=None, ge=1, le=1024)
    """Runs of models at a time. Absent: one a core, of those that the container may use."""

    predictor_model_control: ModelControl = ModelControl.EXPLICIT
    """Who decides what is loaded after the start: explicit (calls), poll (the files in the repository) or none."""

    predictor_poll_seconds: float = Field(default=15.0, gt=0)
    """Time between two looks at the repository, seconds, where it is polled."""

    predictor_response_cache_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Bytes of answers kept for models whose configuration asks for it; 0 keeps none."""

    predictor_shared_memory: bool | None = None
    """Whether callers may use shared memory of this machine. Absent: where the server listens on this machine alone."""

    predictor_trace_file: Path | None = None
    """File of the traces that TraceSetting turns on. Absent: a file in `home`."""

    predictor_trace_endpoint: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Collector of OpenTelemetry that spans go to, as `http://collector:4318`. Empty: there are none."""

    predictor_trace_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced, of those whose caller does not say whether they are."""

    predictor_canary_percent: int = Field(default=0, ge=0, le=99)
    """Share of the requests on which a new version proves itself, where its configuration says nothing; 0 gives all."""

    predictor_keys_file: Path | None = None
    """JSON file of the keys that callers have to show; `python -m services.predictor.keys` adds to it. Absent: none."""

    def of_process(self, number: int, cores: int) -> Self:
        """Returns the settings of one of the processes.

        Args:
            number: Its number, from 0.
            cores: Cores that all of them may use.
        """
        processes = self.predictor_processes
        threads = self.predictor_threads or cores
        calls = self.max_concurrent_rpcs
        return self.model_copy(
            update={
                "predictor_threads": max(1, threads // processes + (number < threads % processes)),
                "predictor_max_waiting_wafers": math.ceil(self.predictor_max_waiting_wafers / processes),
                "predictor_response_cache_bytes": self.predictor_response_cache_bytes // processes,
                "max_concurrent_rpcs": None if calls is None else math.ceil(calls / processes),
                "port_file_dir": None,
            }
        )

    @property
    def resolved_shared_memory(self) -> bool:
        """Whether callers may use shared memory of this machine."""
        if self.predictor_shared_memory is not None:
            return self.predictor_shared_memory
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def resolved_trace_file(self) -> Path:
        """File of the traces in use."""
        return self.predictor_trace_file or self.home / "predictor-trace.json"
