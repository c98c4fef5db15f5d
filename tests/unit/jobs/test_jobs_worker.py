"""The worker harness, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from services.common.jobs import worker
from services.common.jobs.run_folder import RunFolder, WorkerEvent, WorkOrder
from services.common.jobs.worker import JobContext, JobStopped, open_context


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.prepare(WorkOrder("job", "kind", (tmp_path / "store").as_uri(), {"epochs": 3}), 1)
    return folder


@pytest.fixture
def context(run_folder: RunFolder) -> JobContext:
    return open_context(run_folder.path, 1)


def events(run_folder: RunFolder, attempt: int = 1) -> list[WorkerEvent]:
    return [WorkerEvent.from_line(line) for line in run_folder.attempt(attempt).read_event_lines(0)[0]]


def test_the_context_knows_the_job(context: JobContext, run_folder: RunFolder) -> None:
    assert (context.job_id, context.attempt, context.spec) == ("job", 1, {"epochs": 3})
    assert context.folder == run_folder.path / "attempts" / "1"
    assert context.checkpoints.is_dir()
    assert context.store.list("") == []
    assert context.elapsed_s() >= 0
    assert context.peak_memory_bytes() > 1_000_000


def test_values_of_numpy_and_odd_ones_never_fail_the_work(context: JobContext, run_folder: RunFolder) -> None:
    context.report("epoch", progress=2, device="CPU", loss=np.float32(0.5), counts=np.arange(3), path=Path("x"))
    context.report("epoch", progress=float("nan"), loss=float("nan"))
    first, second = events(run_folder)
    assert first.data == {"loss": 0.5, "counts": [0, 1, 2], "path": "x"}
    assert (first.progress, first.device) == (1.0, "CPU")
    assert second.progress is None
    assert second.data["loss"] != second.data["loss"]


def test_progress_is_thinned_out_and_all_else_is_written(
    context: JobContext, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(step / 100 for step in range(200))
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
    for step in range(100):
        context.report("progress", progress=step / 100)
    for step in range(50):
        context.report("epoch", epoch=step)
    kinds = [event.kind for event in events(run_folder)]
    assert kinds.count("progress") == 4
    assert kinds.count("epoch") == 50


def test_a_stop_is_told_once_by_report_and_always_by_check(context: JobContext, run_folder: RunFolder) -> None:
    context.check_cancelled()
    context.request_stop()
    with pytest.raises(JobStopped):
        context.report("epoch", epoch=1)
    context.report("checkpoint")
    with pytest.raises(JobStopped):
        context.check_cancelled()
    with pytest.raises(JobStopped):
        context.check_cancelled()
    assert [event.kind for event in events(run_folder)] == ["epoch", "checkpoint"]
    assert not issubclass(JobStopped, Exception)


def test_an_attempt_that_was_replaced_is_stopped(context: JobContext, run_folder: RunFolder) -> None:
    run_folder.prepare(run_folder.read_order(), 2)
    with pytest.raises(JobStopped):
        context.check_cancelled()
    open_context(run_folder.path, 2).check_cancelled()
    run_folder.prepare(run_folder.read_order(), 1)
    assert run_folder.current_attempt() == 2


def test_the_work_goes_on_when_events_cannot_be_written(
    context: JobContext, run_folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder.attempt(1).events.mkdir()
    context.report("epoch")
    context.report("epoch")
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_the_engine_s_own_kind_is_refused(context: JobContext) -> None:
    with pytest.raises(ValueError, match="state"):
        context.report("state", state="SUCCEEDED")


def test_half_a_line_is_not_read_and_an_offset_goes_on(run_folder: RunFolder) -> None:
    folder = run_folder.attempt(1)
    folder.events.write_bytes(b'{"a":1}\n{"b":')
    lines, offset = folder.read_event_lines(0)
    assert (lines, offset) == ([b'{"a":1}'], 8)
    assert folder.read_event_lines(offset) == ([], 8)
    with folder.events.open("ab") as file:
        file.write(b"2}\n")
    assert folder.read_event_lines(offset) == ([b'{"b":2}'], 16)


def test_long_lines_and_long_files_are_read_in_portions(run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.common.jobs.run_folder.MAX_READ_BYTES", 10)
    folder = run_folder.attempt(1)
    content = [b"1" * 50, b"22", b"33", b"4" * 9, b"5" * 10]
    folder.events.write_bytes(b"".join(line + b"\n" for line in content))
    read: list[bytes] = []
    offset = 0
    while True:
        lines, end = folder.read_event_lines(offset)
        if end == offset:
            break
        read, offset = read + lines, end
    assert read == content


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b'{"time":"x","kind":"a","data":{}}', b"\xff", b"{"])
def test_lines_that_are_no_events_are_told(line: bytes) -> None:
    with pytest.raises((ValueError, KeyError)):
        WorkerEvent.from_line(line)


def test_a_result_with_odd_values_is_written_as_json(run_folder: RunFolder) -> None:
    context = open_context(run_folder.path, 1)
    code = worker._run(lambda _: {"score": np.float64(0.5)}, context, run_folder.attempt(1))
    assert code == 0
    assert json.loads(run_folder.attempt(1).result.read_bytes()) == {"score": 0.5}
