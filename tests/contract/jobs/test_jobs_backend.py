"""What every job backend promises. A further backend is one more parameter of the fixture `backend`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from services.common.errors import UnavailableError
from services.common.jobs import EndReason
from services.common.jobs.backend import AttemptSpec, AttemptStatus, JobBackend, JobRef, Phase
from services.common.jobs.local import LocalBackend, visible_gpus
from services.common.jobs.run_folder import RunFolder, WorkOrder
from tests.contract.jobs.conftest import ROOT, WORKER, kill_workers
from tests.helpers.eventually import assert_eventually

MakeBackend = Callable[..., JobBackend]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "runs"


@pytest.fixture(params=["local"])
def make_backend(request: pytest.FixtureRequest, runs: Path) -> AsyncIterator[MakeBackend]:
    """Makes a backend; the next one is what a restarted service has."""
    assert request.param == "local"
    yield lambda slots=4, gpus=None: LocalBackend(runs, slots=slots, poll_s=0.02, gpus=gpus or [])
    kill_workers(runs)


@pytest.fixture
def backend(make_backend: MakeBackend) -> JobBackend:
    return make_backend()


def attempt(runs: Path, job_id: str = "job", number: int = 1, **spec: object) -> AttemptSpec:
    order = WorkOrder(job_id, "kind", (runs / "store").as_uri(), dict(spec))
    return AttemptSpec(order, number, WORKER, runs / job_id)


def holding(runs: Path, **spec: object) -> AttemptSpec:
    return attempt(runs, to=1, hold_at=0, gate=str(runs / "gate"), **spec)


async def until(backend: JobBackend, ref: JobRef, *phases: Phase) -> AttemptStatus:
    """Returns the first observed status of an attempt with one of the phases."""
    await backend.get(ref)
    async with asyncio.timeout(60):
        async with contextlib.aclosing(backend.observe()) as statuses:  # type: ignore[type-var]
            async for status in statuses:
                if status.ref.key == ref.key and status.phase in phases:
                    return status
    raise AssertionError("the stream of statuses ended")


async def holds(runs: Path) -> None:
    events = RunFolder(runs / "job").attempt(1)
    await assert_eventually(lambda: b"holding" in b"".join(events.read_event_lines(0)[0]), timeout_s=60)


async def test_an_attempt_runs_to_its_result(backend: JobBackend, runs: Path) -> None:
    ref = await backend.submit(attempt(runs, to=2))
    assert ref.key == ("job", 1)
    status = await until(backend, ref, Phase.SUCCEEDED, Phase.FAILED)
    assert (status.phase, status.exit_code) == (Phase.SUCCEEDED, 0)
    assert await backend.get(ref) == status
    result = RunFolder(runs / "job").attempt(1).read_result()
    assert result is not None
    assert result["count"] == 2


@pytest.mark.parametrize(
    ("spec", "exit_code"),
    [
        ({"failure": "config"}, 64),
        ({"failure": "data"}, 65),
        ({"failure": "disk"}, 74),
        ({"failure": "memory"}, 137),
        ({"failure": "surprise"}, 1),
        ({"exit_attempts": [1], "exit_code": 75}, 75),
    ],
)
async def test_exit_codes_say_how_an_attempt_failed(
    backend: JobBackend, runs: Path, spec: dict[str, object], exit_code: int
) -> None:
    ref = await backend.submit(attempt(runs, fail_attempts=[1] if "failure" in spec else [], **spec))
    status = await until(backend, ref, Phase.SUCCEEDED, Phase.FAILED)
    assert (status.phase, status.exit_code) == (Phase.FAILED, exit_code)
    if exit_code == 1:
        tail = await backend.tail(ref, 3)
        assert len(tail) == 3
        assert "RuntimeError" in tail[-1]


async def test_submitting_an_attempt_again_starts_nothing(make_backend: MakeBackend, runs: Path) -> None:
    first = make_backend()
    refs = await asyncio.gather(*(first.submit(holding(runs)) for _ in range(5)))
    assert len({ref.handle["pid"] for ref in refs}) == 1
    # A service that died before it stored the reference submits the attempt again after its restart.
    assert (await make_backend().submit(holding(runs))).handle["pid"] == refs[0].handle["pid"]


async def test_two_services_that_submit_one_attempt_start_one_process(make_backend: MakeBackend, runs: Path) -> None:
    refs = await asyncio.gather(*(make_backend().submit(holding(runs)) for _ in range(4)))
    assert len({ref.handle["pid"] for ref in refs}) == 1


async def test_an_attempt_that_ended_unseen_is_not_started_again(make_backend: MakeBackend, runs: Path) -> None:
    first = make_backend()
    ref = await first.submit(attempt(runs, to=1))
    await until(first, ref, Phase.SUCCEEDED)
    second = make_backend()
    again = await second.submit(attempt(runs, to=1))
    assert again.handle["pid"] == ref.handle["pid"]
    assert (await second.get(again)).phase is Phase.SUCCEEDED


async def test_cancel_lets_the_worker_write_its_checkpoint(backend: JobBackend, runs: Path) -> None:
    ref = await backend.submit(holding(runs, checkpoint_on_stop=True))
    await holds(runs)
    await backend.cancel(ref, grace_s=60)
    status = await backend.get(ref)
    assert (status.phase, status.exit_code) == (Phase.FAILED, 143)
    assert (runs / "job" / "checkpoints" / "count").read_text() == "0"
    await backend.cancel(ref, grace_s=60)


async def test_cancel_kills_after_the_grace_and_takes_children_along(backend: JobBackend, runs: Path) -> None:
    ref = await backend.submit(holding(runs, ignore_sigterm=True, child=True))
    await holds(runs)
    children = psutil.Process(ref.handle["pid"]).children()
    assert len(children) == 1
    await backend.cancel(ref, grace_s=0)
    assert (await backend.get(ref)).exit_code == 137
    await assert_eventually(lambda: not any(child.is_running() for child in children))


async def test_children_of_a_worker_that_ended_are_killed_on_release(backend: JobBackend, runs: Path) -> None:
    ref = await backend.submit(holding(runs, child=True))
    await holds(runs)
    children = psutil.Process(ref.handle["pid"]).children()
    os.kill(ref.handle["pid"], signal.SIGKILL)
    await until(backend, ref, Phase.FAILED)
    assert children[0].is_running()
    await backend.release(ref)
    await assert_eventually(lambda: not any(child.is_running() for child in children))


async def test_an_adopted_attempt_is_observed_and_cancelled(make_backend: MakeBackend, runs: Path) -> None:
    ref = await make_backend().submit(holding(runs))
    await holds(runs)
    second = make_backend()
    assert (await second.get(ref)).phase is Phase.RUNNING
    assert (await second.capacity()).free == 3
    # Not a child of the second service: its end is seen all the same.
    await second.cancel(ref, grace_s=60)
    assert (await second.get(ref)).exit_code == 143


async def test_a_process_that_got_the_number_of_a_worker_is_left_alone(make_backend: MakeBackend, runs: Path) -> None:
    first = make_backend()
    stranger = await first.submit(holding(runs))
    await holds(runs)
    handle = {**stranger.handle, "started": stranger.handle["started"] - 1}
    mistaken = JobRef("other", 1, handle)
    second = make_backend()
    assert (await second.get(mistaken)).phase is Phase.GONE
    await second.cancel(mistaken, grace_s=0)
    await second.release(mistaken)
    assert (await first.get(stranger)).phase is Phase.RUNNING


async def test_an_attempt_of_another_machine_is_lost(backend: JobBackend, runs: Path) -> None:
    ref = await backend.submit(holding(runs))
    elsewhere = JobRef("other", 1, {**ref.handle, "host": "elsewhere"})
    status = await backend.get(elsewhere)
    assert (status.phase, status.reason) == (Phase.GONE, EndReason.NODE_LOST)
    await backend.cancel(elsewhere, grace_s=0)
    assert (await backend.get(ref)).phase is Phase.RUNNING


async def test_places_are_counted_and_each_has_its_gpu(make_backend: MakeBackend, runs: Path) -> None:
    backend = make_backend(slots=2, gpus=["3", "GPU-7"])
    refs = [await backend.submit(attempt(runs, f"job{index}", to=1)) for index in range(2)]
    assert ((await backend.capacity()).free, (await backend.capacity()).gpus) == (0, 2)
    with pytest.raises(UnavailableError, match="Wait until one is free"):
        await backend.submit(attempt(runs, "job2", to=1))
    used = []
    for ref in refs:
        await until(backend, ref, Phase.SUCCEEDED)
        result = RunFolder(runs / ref.job_id).attempt(1).read_result()
        used.append(result and result["gpus"])
        await backend.release(ref)
    assert used == ["3", "GPU-7"]
    assert (await backend.capacity()).free == 2


def test_gpus_are_those_that_this_process_may_use() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1, GPU-5"}, lambda: 8) == ["1", "GPU-5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, lambda: 8) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, lambda: 8) == []
    assert visible_gpus({}, lambda: 2) == ["0", "1"]


@pytest.fixture
def unwritable(runs: Path) -> None:
    runs.write_text("a file where the folder should be")


@pytest.mark.usefixtures("unwritable")
async def test_a_folder_that_cannot_be_written_is_an_os_error(backend: JobBackend, runs: Path) -> None:
    with pytest.raises(OSError, match="Not a directory"):
        await backend.submit(attempt(runs, to=1))
    assert (await backend.capacity()).free == 4
