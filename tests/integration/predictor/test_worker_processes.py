"""Several processes on the ports of one predictor: whichever of them a caller reaches, the server is the same."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from inference import grpc_service_pb2, grpc_service_pb2_grpc

from services.common.client import connect_sync
from services.common.errors import AlreadyExistsError, DataLossError, InternalError
from tests.helpers.eventually import assert_eventually_sync
from tests.helpers.onnx_models import add_failing, add_plus
from tests.helpers.processes import ServiceProcess, service_process

PROCESSES = 2
START_S = 180.0
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
CANARY = """
parameters { key: "canary_percent" value { string_value: "50" } }
parameters { key: "canary_min_requests" value { string_value: "4" } }
"""


class Predictor:
    """A predictor of several processes.

    Args:
        service: Its parent.
        stub: Stub of the open inference protocol, to whichever process the kernel chooses.
    """

    def __init__(self, service: ServiceProcess, stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        self.service = service
        self.stub = stub
        self.models = service.home / "models"

    def workers(self) -> list[psutil.Process]:
        """Returns the processes that serve."""
        return [
            each
            for each in psutil.Process(self.service.popen.pid).children()
            if "services.predictor.worker" in each.cmdline() and self._listens(each)
        ]

    def connect(self) -> tuple[http.client.HTTPConnection, int]:
        """Returns a new connection to the REST port, and the process that has it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port("predictor-rest"), timeout=60)
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        port = connection.sock.getsockname()[1]
        (owner,) = (
            each.pid
            for each in self.workers()
            if any(it.raddr and it.raddr.port == port for it in each.net_connections("tcp"))
        )
        return connection, owner

    def from_all(self, method: str, path: str, told: object = None) -> list[tuple[int, Any]]:
        """Returns status and answer of each process, in connections that are made until all of them have answered."""
        answers: dict[int, tuple[int, Any]] = {}
        for _ in range(200):
            connection, owner = self.connect()
            with contextlib.closing(connection):
                if owner not in answers:
                    answers[owner] = asked(connection, method, path, told)
            if len(answers) == PROCESSES:
                return list(answers.values())
        raise AssertionError(f"Expected answers of {PROCESSES} processes. Received: {answers}")

    def load(self, name: str, config: dict[str, Any] | None = None, files: dict[str, bytes] | None = None) -> None:
        """Loads a model, asking one process."""
        request = grpc_service_pb2.RepositoryModelLoadRequest(model_name=name)
        if config is not None:
            request.parameters["config"].string_param = json.dumps(config)
        for path, content in (files or {}).items():
            request.parameters[f"file:{path}"].bytes_param = content
        self.stub.RepositoryModelLoad(request, timeout=60)

    def successes(self, name: str) -> float:
        """Returns the answered requests that the metrics tell."""
        port = self.service.port("predictor-metrics")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            found = re.search(
                rf'^nv_inference_request_success{{model="{name}",version="1"}} (\S+)$', response.read().decode(), re.M
            )
        return float(found[1]) if found else 0.0

    def _listens(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            listening = {it.laddr.port for it in process.net_connections("tcp") if it.status == psutil.CONN_LISTEN}
            return {self.service.port("predictor-rest"), self.service.port()} <= listening
        return False


def asked(connection: http.client.HTTPConnection, method: str, path: str, told: object = None) -> tuple[int, Any]:
    connection.request(method, path, None if told is None else json.dumps(told))
    response = connection.getresponse()
    body = response.read()
    return response.status, json.loads(body) if body else None


@contextlib.contextmanager
def running(home: Path, **told: str) -> Iterator[Predictor]:
    settings = {
        "TEACHWAFER_PREDICTOR_PROCESSES": str(PROCESSES),
        "TEACHWAFER_PREDICTOR_THREADS": str(PROCESSES),
        **told,
    }
    with service_process("services.predictor", home, settings) as service:
        service.port(timeout_s=START_S)
        service.wait_serving(START_S)
        with connect_sync(service.address) as channel:
            yield Predictor(service, grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """Two processes on the ports of one predictor, with the model `plus`."""
    home = tmp_path_factory.mktemp("workers")
    add_plus(home / "models", "plus")
    with running(home) as predictor:
        yield predictor


def values(answers: list[tuple[int, Any]]) -> list[list[float]]:
    """Returns the values of the first output of each answer."""
    assert [status for status, _ in answers] == [200] * PROCESSES, answers
    return [answer["outputs"][0]["data"] for _, answer in answers]


def test_loads_and_unloads_reach_all(predictor: Predictor) -> None:
    add_plus(predictor.models, "late", 5.0)
    predictor.load("late", {"max_batch_size": 7})
    assert values(predictor.from_all("POST", "/v2/models/late/infer", INFER)) == [[6, 7, 8]] * PROCESSES
    configs = predictor.from_all("GET", "/v2/models/late/config")
    assert [config["max_batch_size"] for _, config in configs] == [7] * PROCESSES
    connection, _ = predictor.connect()
    with contextlib.closing(connection):
        assert asked(connection, "POST", "/v2/repository/models/late/unload") == (200, None)
    assert [status for status, _ in predictor.from_all("GET", "/v2/models/late/ready")] == [400] * PROCESSES


def test_what_one_cannot_load_is_loaded_nowhere(predictor: Predictor, tmp_path: Path) -> None:
    """One of the processes may write files of 1 MB at most, and a file of 2 MB is sent along."""
    files = {
        "1/model.onnx": (add_plus(tmp_path, "sent", 9.0) / "1" / "model.onnx").read_bytes(),
        "1/more.bin": bytes(2 << 20),
    }
    add_plus(predictor.models, "sent", 3.0)
    predictor.load("sent")
    index = predictor.from_all("POST", "/v2/repository/index", {})
    assert index[0] == index[1]
    worker = predictor.workers()[0]
    before = worker.rlimit(psutil.RLIMIT_FSIZE)
    worker.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    try:
        with pytest.raises(InternalError, match="1 of 2 processes could not, and the others went back"):
            predictor.load("sent", {"max_batch_size": 4}, files)
    finally:
        worker.rlimit(psutil.RLIMIT_FSIZE, before)
    assert values(predictor.from_all("POST", "/v2/models/sent/infer", INFER)) == [[4, 5, 6]] * PROCESSES
    assert predictor.from_all("POST", "/v2/repository/index", {}) == index
    predictor.load("sent", {"max_batch_size": 4}, files)
    assert values(predictor.from_all("POST", "/v2/models/sent/infer", INFER)) == [[10, 11, 12]] * PROCESSES


def test_a_damaged_model_is_refused_with_its_reason(predictor: Predictor) -> None:
    add_plus(predictor.models, "damaged")
    predictor.load("damaged")
    file = predictor.models / "damaged" / "1" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(b"nothing")
    with pytest.raises(DataLossError, match=r"^Expected a model that onnxruntime"):
        predictor.load("damaged")
    assert values(predictor.from_all("POST", "/v2/models/damaged/infer", INFER)) == [[2, 3, 4]] * PROCESSES
    file.write_bytes(good)


def test_loads_at_the_same_time_end_alike(predictor: Predictor) -> None:
    add_plus(predictor.models, "contested")

    def load(size: int) -> None:
        predictor.load("contested", {"max_batch_size": size})

    threads = [threading.Thread(target=load, args=(size,)) for size in range(2, 8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    (one, other) = predictor.from_all("GET", "/v2/models/contested/config")
    assert one == other
    assert one[1]["max_batch_size"] in range(2, 8)


def test_a_region_that_was_registered_once_is_everywhere(predictor: Predictor) -> None:
    with region("teachwafer-test-workers", np.array([[1, 2, 3]], np.float32)) as key:
        request = grpc_service_pb2.SystemSharedMemoryRegisterRequest(name="in", key=key, offset=0, byte_size=12)
        predictor.stub.SystemSharedMemoryRegister(request)
        with pytest.raises(AlreadyExistsError):
            predictor.stub.SystemSharedMemoryRegister(request)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
        told = {"inputs": [{**tensor, "parameters": {"shared_memory_region": "in", "shared_memory_byte_size": 12}}]}
        assert values(predictor.from_all("POST", "/v2/models/plus/infer", told)) == [[2, 3, 4]] * PROCESSES
        predictor.stub.SystemSharedMemoryUnregister(grpc_service_pb2.SystemSharedMemoryUnregisterRequest(name="in"))
        assert predictor.from_all("GET", "/v2/systemsharedmemory/status") == [(200, [])] * PROCESSES


def test_settings_hold_for_all(predictor: Predictor) -> None:
    connection, _ = predictor.connect()
    with contextlib.closing(connection):
        told = {"trace_rate": "77"}
        assert asked(connection, "POST", "/v2/models/plus/trace/setting", told)[1]["trace_rate"] == "77"
        assert asked(connection, "POST", "/v2/logging", {"log_verbose_level": 1})[1]["log_verbose_level"] == 1
        traces = predictor.from_all("GET", "/v2/models/plus/trace/setting")
        assert [each["trace_rate"] for _, each in traces] == ["77"] * PROCESSES
        logs = predictor.from_all("GET", "/v2/logging")
        assert [each["log_verbose_level"] for _, each in logs] == [1] * PROCESSES
        asked(connection, "POST", "/v2/logging", {"log_verbose_level": 0})


def test_what_all_have_done_is_counted_together(predictor: Predictor) -> None:
    add_plus(predictor.models, "counted")
    predictor.load("counted")
    for _ in range(2):
        predictor.from_all("POST", "/v2/models/counted/infer", INFER)
    answers = predictor.from_all("GET", "/v2/models/counted/stats")
    assert answers[0] == answers[1]
    (done,) = answers[0][1]["model_stats"]
    assert int(done["inference_stats"]["success"]["count"]) == 2 * PROCESSES
    assert int(done["batch_stats"][0]["compute_infer"]["count"]) == 2 * PROCESSES
    assert predictor.successes("counted") == 2 * PROCESSES


def test_a_version_that_one_rolls_back_leaves_all(predictor: Predictor) -> None:
    add_plus(predictor.models, "tried", config=CANARY)
    predictor.load("tried")
    add_failing(predictor.models, "tried", version=2)
    predictor.load("tried")
    ready = predictor.from_all("GET", "/v2/models/tried/versions/2/ready")
    assert [status for status, _ in ready] == [200] * PROCESSES
    connection, _ = predictor.connect()
    with contextlib.closing(connection):

        def rolled_back() -> bool:
            asked(connection, "POST", "/v2/models/tried/infer", INFER)
            return asked(connection, "GET", "/v2/models/tried/versions/2/ready")[0] == 400

        assert_eventually_sync(rolled_back)
    for _, index in predictor.from_all("POST", "/v2/repository/index", {}):
        (entry,) = (each for each in index if (each["name"], each["version"]) == ("tried", "2"))
        assert entry["state"] == "UNAVAILABLE"
        assert entry["reason"].startswith("Rolled back to version 1")
    assert values(predictor.from_all("POST", "/v2/models/tried/infer", INFER)) == [[2, 3, 4]] * PROCESSES


def test_another_takes_the_place_of_one_that_was_killed(predictor: Predictor, tmp_path: Path) -> None:
    """What was loaded at the start, by call, with a configuration and with files is there; a newer version is not."""
    add_plus(predictor.models, "kept", 1.0)
    predictor.load("kept", {"max_batch_size": 6})
    model = (add_plus(tmp_path, "brought", 9.0) / "1" / "model.onnx").read_bytes()
    predictor.load("brought", {"max_batch_size": 5}, {"1/model.onnx": model})
    add_plus(predictor.models, "kept", 100.0, version=2)
    told = {"log_verbose_level": 2}
    connection, survivor = predictor.connect()
    (killed,) = (each for each in predictor.workers() if each.pid != survivor)
    with contextlib.closing(connection), region("teachwafer-test-kept", np.zeros(3, np.float32)) as key:
        asked(connection, "POST", "/v2/systemsharedmemory/region/kept/register", {"key": key, "byte_size": 12})
        asked(connection, "POST", "/v2/logging", told)
        predictor.from_all("POST", "/v2/models/kept/infer", INFER)
        before = predictor.successes("kept")
        killed.kill()
        psutil.wait_procs([killed], timeout=10)
        calls = 0
        while len(predictor.workers()) < PROCESSES:
            assert asked(connection, "POST", "/v2/models/kept/infer", INFER)[0] == 200
            calls += 1
        assert calls
        assert killed.pid not in {each.pid for each in predictor.workers()}
        assert values(predictor.from_all("POST", "/v2/models/kept/infer", INFER)) == [[2, 3, 4]] * PROCESSES
        assert values(predictor.from_all("POST", "/v2/models/brought/infer", INFER)) == [[10, 11, 12]] * PROCESSES
        for path in ("kept/config", "brought/config", "kept"):
            (one, other) = predictor.from_all("GET", f"/v2/models/{path}")
            assert one == other
        (one, other) = predictor.from_all("POST", "/v2/repository/index", {})
        assert one == other
        regions = predictor.from_all("GET", "/v2/systemsharedmemory/status")
        assert [[each["name"] for each in answer] for _, answer in regions] == [["kept"]] * PROCESSES
        assert [each["log_verbose_level"] for _, each in predictor.from_all("GET", "/v2/logging")] == [2] * PROCESSES
        assert predictor.successes("kept") == before + calls + PROCESSES
    assert "a worker has ended and is started again" in predictor.service.log


def test_all_follow_the_repository_and_drain_at_the_end(tmp_path: Path) -> None:
    told = {"TEACHWAFER_PREDICTOR_MODEL_CONTROL": "poll", "TEACHWAFER_PREDICTOR_POLL_SECONDS": "0.1"}
    with running(tmp_path / "home", **told) as predictor:
        slow = "dynamic_batching { preferred_batch_size: [ 64 ] max_queue_delay_microseconds: 2000000 }"
        add_plus(predictor.models, "slow", config=f"max_batch_size: 64\n{slow}")
        assert_eventually_sync(
            lambda: all(status == 200 for status, _ in predictor.from_all("GET", "/v2/models/slow/ready")),
            timeout_s=60,
        )
        request = grpc_service_pb2.ModelInferRequest(
            model_name="slow",
            inputs=[grpc_service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])],
            raw_input_contents=[np.array([1, 2, 3], np.float32).tobytes()],
        )
        workers = predictor.workers()
        with contextlib.ExitStack() as stack:
            calls = []
            for _ in range(4):
                channel = stack.enter_context(grpc.insecure_channel(predictor.service.address))
                grpc.channel_ready_future(channel).result(30)
                calls.append(grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(request))
            assert_eventually_sync(lambda: pending(predictor) == len(calls), interval_s=0.1)
            predictor.service.terminate()
            for call in calls:
                assert np.frombuffer(call.result(30).raw_output_contents[0], np.float32).tolist() == [2, 3, 4]
        assert predictor.service.wait() == 0
        assert not any(each.is_running() for each in workers)


def test_a_parent_that_is_killed_leaves_nobody_behind(tmp_path: Path) -> None:
    with running(tmp_path / "home") as predictor:
        workers = predictor.workers()
        assert len(workers) == PROCESSES
        predictor.service.kill()
        assert_eventually_sync(lambda: not any(each.is_running() for each in workers), timeout_s=30)


def test_workers_that_cannot_start_end_the_server(tmp_path: Path) -> None:
    told = {
        "TEACHWAFER_PREDICTOR_PROCESSES": "2",
        "TEACHWAFER_TLS_CERTIFICATE": str(tmp_path / "none.pem"),
        "TEACHWAFER_TLS_KEY": str(tmp_path / "none.key"),
    }
    with service_process("services.predictor", tmp_path / "home", told) as service:
        assert service.wait(START_S) == 1
        assert "Expected a readable TLS file" in service.log
        assert "Expected workers that serve" in service.log


def pending(predictor: Predictor) -> int:
    """Returns the requests that wait or run."""
    port = predictor.service.port("predictor-metrics")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    found = re.search(r'^nv_inference_pending_request_count{model="slow",version="1"} (\S+)$', text, re.M)
    return int(float(found[1])) if found else 0


@contextlib.contextmanager
def region(name: str, content: np.ndarray) -> Iterator[str]:
    """Yields the key of an object of shared memory."""
    path = Path("/dev/shm") / name
    path.write_bytes(content.tobytes())
    try:
        yield f"/{name}"
    finally:
        path.unlink()
