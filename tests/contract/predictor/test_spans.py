"""Spans reach a collector as OTLP in JSON, in the trace of their caller; without a collector no request suffers."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.errors import InvalidArgumentError
from services.predictor.spans import Spans
from tests.contract.predictor.conftest import Serve
from tests.contract.predictor.test_kserve import request
from tests.helpers.onnx_models import add_failing, add_plus

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = request(np.zeros((2, 3), np.float32))
PARTS = ["queue", "compute input", "compute infer", "compute output"]


class Collector:
    """Takes spans as a collector does, over HTTP."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/json")
                for each in body["resourceSpans"]:
                    collector.services |= {one["value"]["stringValue"] for one in each["resource"]["attributes"]}
                    collector.spans += [span for scope in each["scopeSpans"] for span in scope["spans"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def traceparent(flags: str = "01") -> str:
    return f"00-{TRACE}-{PARENT}-{flags}"


async def test_a_request_is_a_span_in_its_callers_trace(serve: Serve, tmp_path: Path, collector: Collector) -> None:
    add_plus(tmp_path / "models", "plus")
    add_failing(tmp_path / "models", "failing")
    with contextlib.closing(Spans(collector.endpoint, share=0)) as spans:
        async with serve(spans=spans) as server:
            await server.kserve.ModelInfer(GOOD, metadata=(("traceparent", traceparent()),))
            with pytest.raises(InvalidArgumentError):
                await server.kserve.ModelInfer(
                    request(np.zeros((1, 3), np.float32), model="failing"),
                    metadata=(("traceparent", traceparent()),),
                )
            answer = await server.rest.post(
                "/v2/models/plus/infer",
                json={"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}]},
                headers={"traceparent": traceparent()},
            )
            assert answer.status_code == 200
            # Not sampled by its caller, no trace of a caller's, and no traceparent at all: the share is 0.
            for told in (traceparent("00"), "00-nonsense", f"00-{'0' * 32}-{PARENT}-01", ""):
                await server.kserve.ModelInfer(GOOD, metadata=(("traceparent", told),))
    assert collector.services == {"teachwafer-predictor"}
    assert {each["traceId"] for each in collector.spans} == {TRACE}
    good, failed, rest = [each for each in collector.spans if each["parentSpanId"] == PARENT]
    assert [each["name"] for each in (good, failed, rest)] == ["infer plus", "infer failing", "infer plus"]
    assert (good["kind"], good["status"]) == (2, {"code": 1})
    assert failed["status"] == {"code": 2, "message": "INVALID_ARGUMENT"}
    assert {"key": "batch.items", "value": {"intValue": "2"}} in good["attributes"]
    parts = [each for each in collector.spans if each["parentSpanId"] == good["spanId"]]
    assert [each["name"] for each in parts] == PARTS
    moments = [int(each[key]) for each in parts for key in ("startTimeUnixNano", "endTimeUnixNano")]
    assert moments == sorted(moments)
    assert int(good["startTimeUnixNano"]) <= moments[0]
    assert moments[-1] <= int(good["endTimeUnixNano"])
    assert len({each["spanId"] for each in collector.spans}) == len(collector.spans)


async def test_requests_without_a_trace_get_one_of_their_own(
    serve: Serve, tmp_path: Path, collector: Collector
) -> None:
    add_plus(tmp_path / "models", "plus")
    with contextlib.closing(Spans(collector.endpoint)) as spans:
        async with serve(spans=spans) as server:
            for _ in range(3):
                await server.kserve.ModelInfer(GOOD)
    assert len({each["traceId"] for each in collector.spans}) == 3
    assert len([each for each in collector.spans if not each["parentSpanId"]]) == 3


async def test_a_collector_that_is_not_there_harms_nothing(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_plus(tmp_path / "models", "plus")
    # Port 1 answers nobody.
    with contextlib.closing(Spans("http://127.0.0.1:1")) as spans:
        async with serve(spans=spans) as server:
            for _ in range(3):
                await server.kserve.ModelInfer(GOOD)
    assert spans.dropped == 3 * (1 + len(PARTS))
    assert [each.message for each in caplog.records].count("could not send spans") == 1
