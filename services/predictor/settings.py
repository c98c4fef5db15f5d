"""Settings of the predictor."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings


class PredictorSettings(ServiceSettings):
    """What the predictor can be told."""

    predictor_grpc_port: int = Field(default=8001, ge=0, le=65535)
    """Port of both gRPC protocols; 0 takes a free one."""

    predictor_metrics_port: int = Field(default=8002, ge=0, le=65535)
    """Port of the Prometheus metrics; 0 takes a free one."""

    predictor_max_waiting_wafers: int = Field(default=16_384, ge=1)
    """Wafers that wait or run at a time; further calls get RESOURCE_EXHAUSTED."""
