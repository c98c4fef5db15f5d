"""How fast the predictor serves, beside onnxruntime alone and other servers: `make bench-serving`.

Every server serves the same ONNX model, on the same cores as the client, and is measured in turn, round after round;
medians and their ratios are printed as JSON, beside the load of the machine. Peers are installed into environments of
their own; one that cannot be is left out, and the reason is printed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import psutil
from inference import grpc_service_pb2 as kserve
from teachwafer.predictor.v1 import predictor_pb2 as pb
from teachwafer.type import wafer_map_pb2

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.bench.serving.load import Load
from tests.helpers.processes import service_process
from tests.helpers.venvs import venv_python

ROOT = Path(__file__).parents[3]
LOT, SIDE, MODEL = 25, 52, "demo"
OUTPUTS = ["probabilities", "novelty"]
INFER, STREAM_INFER = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"
CLASSIFY = "/teachwafer.predictor.v1.PredictorService/Classify"
CORES = len(os.sched_getaffinity(0))
SINGLES, LOTS, STREAM = "single wafers, 32 in flight", f"lots of {LOT}", "single wafers on 32 streams"

PEERS = {
    "mlserver": ("MLServer", "mlserver_runtime.py", ["mlserver==1.7.1"]),
    "kserve": ("KServe", "kserve_model.py", ["kserve"]),
    "litserve": ("LitServe", "litserve_api.py", ["litserve"]),
    "pytriton": ("PyTriton", "pytriton_model.py", ["nvidia-pytriton"]),
}
"""Name, program and requirements of each peer."""


@dataclass
class Server:
    """A server that is measured.

    Attributes:
        name: Its name.
        loads: What is sent to it, by scenario.
        ready_s: Time from its start until it is ready, seconds.
        memory_mb: Memory of its processes together when it is ready, MB.
        results: What came of each round, by scenario.
    """

    name: str
    loads: dict[str, Load]
    ready_s: float
    memory_mb: float
    results: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help=f"out of {', '.join(PEERS)}, with commas; may be empty"
    )
    parser.add_argument("--model", type=Path, help="home with a published model `demo`; default: one is taught")
    parser.add_argument("--out", type=Path, help="file to keep the figures in")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder, contextlib.ExitStack() as stack:
        home = told.model or taught(Path(folder))
        dies = np.random.default_rng(0).integers(1, 3, (LOT, SIDE, SIDE)).astype(np.uint8)
        path = next(home.glob(f"models/{MODEL}/*/model.onnx")).resolve()
        servers = [stack.enter_context(ours(home, dies, told.seconds))]
        for name in filter(None, told.peers.split(",")):
            try:
                servers.append(stack.enter_context(peer(name, path, dies, told.seconds)))
            except (subprocess.CalledProcessError, AssertionError) as error:
                print(f"{PEERS[name][0]} is left out: {error}", file=sys.stderr)
        alone = measured(servers, path, dies, told.rounds, told.seconds)
        report(servers, alone, told.out, told.rounds, told.seconds)


def taught(home: Path) -> Path:
    """Teaches the model of the demo and returns the home that it is in."""
    print("Teaching a model to serve ...", file=sys.stderr)
    command = [sys.executable, "-m", "gateway.cli", "demo", "--keep", "--home", str(home), "--local"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return home


@contextlib.contextmanager
def ours(home: Path, dies: np.ndarray, seconds: float) -> Iterator[Server]:
    """Runs the predictor while inside."""
    started = time.perf_counter()
    with service_process("services.predictor", home, {"TEACHWAFER_LOG_LEVEL": "WARNING"}) as service:
        service.wait_serving(180)
        ready_s = time.perf_counter() - started
        wafers = [wafer_map_pb2.WaferMap(rows=SIDE, columns=SIDE, dies=each.tobytes()) for each in dies]
        classify = pb.ClassifyRequest(model=MODEL, wafers=wafers).SerializeToString()
        one = infer_request(dies[:1])
        loads = {
            SINGLES: load("unary", service.address, INFER, one, 32, seconds),
            LOTS: load("unary", service.address, CLASSIFY, classify, 2 * CORES, seconds),
            STREAM: load("stream", service.address, STREAM_INFER, one, 32, seconds),
        }
        yield Server("teachwafer", loads, ready_s, memory_mb(service.popen.pid))


@contextlib.contextmanager
def peer(name: str, model: Path, dies: np.ndarray, seconds: float) -> Iterator[Server]:
    """Runs a peer while inside, once it answers what onnxruntime answers."""
    title, program, requirements = PEERS[name]
    python = venv_python(f"bench-{name}", *requirements, f"onnxruntime=={onnxruntime.__version__}")
    port = free_ports()
    script = Path(__file__).parent / "peers" / program
    started = time.perf_counter()
    log = Path(tempfile.gettempdir()) / f"bench-{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), str(script), str(model), str(port)], stdout=output, stderr=output, start_new_session=True
        )
    address = f"127.0.0.1:{port}"
    try:
        if name == "litserve":
            body = [
                json.dumps({"dies": base64.b64encode(each).decode(), "shape": each.shape}) for each in (dies[:1], dies)
            ]
            single, lot = (load("http", address, "/predict", each.encode(), 32, seconds) for each in body)
            lot = Load(**{**asdict(lot), "in_flight": 2 * CORES})
            check = asked_by_http(address, body[0])
        else:
            single = load("unary", address, INFER, infer_request(dies[:1]), 32, seconds)
            lot = load("unary", address, INFER, infer_request(dies), 2 * CORES, seconds)
            check = asked_by_grpc(address, infer_request(dies[:1]))
        expected = onnxruntime.InferenceSession(str(model)).run(OUTPUTS, {"dies": dies[:1]})[0]
        received = answered(check, process, log)
        np.testing.assert_allclose(np.ravel(received), np.ravel(expected), atol=1e-3)
        yield Server(title, {SINGLES: single, LOTS: lot}, time.perf_counter() - started, memory_mb(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def answered(check: Callable[[], np.ndarray], process: subprocess.Popen[bytes], log: Path) -> np.ndarray:
    """Returns the first answer of a server."""
    end = time.perf_counter() + 120
    while True:
        try:
            return check()
        except (OSError, grpc.RpcError, ValueError) as error:
            if process.poll() is not None or time.perf_counter() > end:
                raise AssertionError(f"it does not answer: {log.read_text(errors='replace')[-1500:]}") from error
            time.sleep(0.1)


def asked_by_grpc(address: str, request: bytes) -> Callable[[], np.ndarray]:
    """Returns what asks a server of the open inference protocol once."""

    def check() -> np.ndarray:
        with grpc.insecure_channel(address) as channel:
            response = kserve.ModelInferResponse.FromString(channel.unary_unary(INFER)(request, timeout=10))
        index = [each.name for each in response.outputs].index("probabilities")
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[index], "<f4")
        return np.array(response.outputs[index].contents.fp32_contents, np.float32)

    return check


def asked_by_http(address: str, body: str) -> Callable[[], np.ndarray]:
    """Returns what asks a server over HTTP once."""

    def check() -> np.ndarray:
        request = urllib.request.Request(
            f"http://{address}/predict", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return np.array(json.load(response)["probabilities"], np.float32)

    return check


def measured(
    servers: list[Server], model: Path, dies: np.ndarray, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Measures onnxruntime alone and every server in turn; returns the wafers a second of the former."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = [onnxruntime.InferenceSession(str(model), options) for _ in range(CORES)]
    alone: dict[str, list[float]] = {SINGLES: [], LOTS: []}
    for number in range(rounds):
        print(f"Round {number + 1} of {rounds} ...", file=sys.stderr)
        for scenario, batch in ((SINGLES, dies[:1]), (LOTS, dies)):
            alone[scenario].append(len(batch) * runs_per_s(sessions, batch, seconds))
            for server in servers:
                if scenario in server.loads:
                    server.results.setdefault(scenario, []).append(sent(server.loads[scenario]))
        servers[0].results.setdefault(STREAM, []).append(sent(servers[0].loads[STREAM]))
    single = servers[0].loads[SINGLES]
    half = statistics.median(each["per_s"] for each in servers[0].results[SINGLES]) / 2
    servers[0].results["single wafers at half saturation"] = [
        sent(Load(**{**asdict(single), "rate": half})) for _ in range(rounds)
    ]
    return alone


def runs_per_s(sessions: list[onnxruntime.InferenceSession], batch: np.ndarray, seconds: float) -> float:
    """Returns the runs a second of onnxruntime alone: a thread and a session a core."""
    counts = [0] * len(sessions)
    begin = threading.Barrier(len(sessions))

    def work(index: int) -> None:
        sessions[index].run(OUTPUTS, {"dies": batch})
        begin.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            sessions[index].run(OUTPUTS, {"dies": batch})
            counts[index] += 1

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(work, range(len(sessions))))
    return sum(counts) / seconds


def sent(load: Load) -> dict[str, float]:
    """Runs the load generator in a process of its own."""
    command = [sys.executable, str(Path(__file__).parent / "load.py")]
    result: dict[str, float] = json.loads(
        subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=True).stdout
    )
    assert not result["errors"], f"{result['errors']} calls to {load.address}{load.path} failed"
    return result


def report(servers: list[Server], alone: dict[str, list[float]], out: Path | None, rounds: int, seconds: float) -> None:
    """Prints medians and ratios, and keeps them."""
    table = []
    for server in servers:
        row: dict[str, object] = {
            "server": server.name,
            "ready_s": round(server.ready_s, 1),
            "memory_mb": round(server.memory_mb),
        }
        for scenario, results in server.results.items():
            wafers = LOT if scenario == LOTS else 1
            rates = [wafers * each["per_s"] for each in results]
            figures: dict[str, float] = {"wafers_per_s": round(statistics.median(rates), 1)}
            for name in ("p50_ms", "p99_ms"):
                figures[name] = round(statistics.median(each[name] for each in results), 2)
            if scenario in alone:
                figures["to_onnxruntime"] = ratio(rates, alone[scenario])
                ours_rates = [wafers * each["per_s"] for each in servers[0].results[scenario]]
                figures["ours_to_it"] = ratio(ours_rates, rates)
            row[scenario] = figures
        table.append(row)
    kept = {
        "command": " ".join(["python tests/bench/serving", *sys.argv[1:]]),
        "cores": CORES,
        "load_average": [round(each, 1) for each in os.getloadavg()],
        "rounds": rounds,
        "seconds": seconds,
        "onnxruntime_wafers_per_s": {scenario: round(statistics.median(rates), 1) for scenario, rates in alone.items()},
        "servers": table,
    }
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{text}\n")
    print(text)


def ratio(rates: list[float], others: list[float]) -> float:
    """Returns the median of the ratios round by round, so that what disturbs a round disturbs both."""
    return round(statistics.median(one / other for one, other in zip(rates, others, strict=True)), 3)


def load(kind: str, address: str, path: str, request: bytes, in_flight: int, seconds: float) -> Load:
    """Returns a load."""
    return Load(kind, address, path, base64.b64encode(request).decode(), in_flight, seconds)


def infer_request(dies: np.ndarray) -> bytes:
    """Returns a request of the open inference protocol."""
    tensor = kserve.ModelInferRequest.InferInputTensor(name="dies", datatype="UINT8", shape=dies.shape)
    outputs = [kserve.ModelInferRequest.InferRequestedOutputTensor(name=each) for each in OUTPUTS]
    request = kserve.ModelInferRequest(
        model_name=MODEL, inputs=[tensor], outputs=outputs, raw_input_contents=[dies.tobytes()]
    )
    return request.SerializeToString()


def memory_mb(pid: int) -> float:
    """Returns the memory of a process and its children, MB."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e6


def free_ports() -> int:
    """Returns a port that is free with the two after it; peers cannot be told to choose one."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in (first + 1, first + 2):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


if __name__ == "__main__":
    main()
