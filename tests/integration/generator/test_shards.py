"""Finished shards are found again: after a kill, by the same request once more, and by workers that share the work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.common.dataset import Split, open_dataset
from services.common.jobs.run_folder import RunFolder
from services.common.store import open_store
from services.generator.domain import ClassRequest, GenerationSpec, VariationOptions
from services.generator.production import SHARD
from tests.helpers.generation_worker import freeze_parents, prepared, run_job, store_url

COUNT = 3 * SHARD + 100
SPEC = GenerationSpec("parents", (ClassRequest("c", COUNT, VariationOptions()),), seed=5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The data set version that an undisturbed run makes."""
    home = tmp_path_factory.mktemp("undisturbed")
    freeze_parents(home, side=24)
    run_job(home, "job", SPEC)
    assert sorted(shards(home)) == [f"{index:06d}" for index in range(4)]
    return made(home, "job")


def shards(home: Path) -> dict[str, int]:
    """Returns the finished shards, with the time at which the file of each was written, nanoseconds."""
    notes = (home / "store" / "shards").glob("*/*.json")
    return {note.stem: note.with_suffix(".arrow").stat().st_mtime_ns for note in notes}


def made(home: Path, job_id: str) -> bytes:
    return open_store(store_url(home)).get(f"datasets/generated-{job_id}/wafers.parquet")


def test_a_run_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path, undisturbed: bytes) -> None:
    freeze_parents(tmp_path, side=24)
    process = subprocess.Popen(prepared(tmp_path, "job", SPEC))
    end = time.monotonic() + 120
    while not shards(tmp_path) and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = shards(tmp_path)
    assert 1 <= len(finished) < 4
    result = run_job(tmp_path, "job", SPEC, attempt=2).result
    assert result["classes"][0]["count"] == COUNT
    assert {name: when for name, when in shards(tmp_path).items() if name in finished} == finished
    assert made(tmp_path, "job") == undisturbed


def test_the_same_request_once_more_makes_nothing_anew(tmp_path: Path, undisturbed: bytes) -> None:
    freeze_parents(tmp_path, side=24)
    run_job(tmp_path, "one", SPEC)
    before = shards(tmp_path)
    again = run_job(tmp_path, "two", SPEC).result
    assert shards(tmp_path) == before
    assert made(tmp_path, "two") == made(tmp_path, "one") == undisturbed
    other = GenerationSpec("parents", (ClassRequest("c", 100, VariationOptions(strength=0.2)),), seed=5)
    run_job(tmp_path, "three", other)
    assert len(list((tmp_path / "store" / "shards").glob("*"))) == 2
    assert again["classes"][0]["realism"]["copied_share"] == 0
    ids = open_dataset(open_store(store_url(tmp_path)), "generated-two").texts("wafer_id", Split.TRAIN)
    assert len(set(ids)) == COUNT


def test_workers_share_the_shards_and_an_attempt_puts_them_together(tmp_path: Path, undisturbed: bytes) -> None:
    freeze_parents(tmp_path, side=24)
    prepared(tmp_path, "job", SPEC)
    folder = str(RunFolder(tmp_path / "runs" / "job").path)
    command = [sys.executable, "-m", "services.generator.shard_worker", "--run-folder", folder]
    for index, expected in ((0, 2 * SHARD), (1, SHARD + 100)):
        environment = {"JOB_COMPLETION_INDEX": str(index), "PATH": ""}
        done = subprocess.run([*command, "--of", "2"], check=True, capture_output=True, text=True, env=environment)
        assert done.stdout.split() == [str(expected), "wafers"]
        assert len(shards(tmp_path)) == 2 * (index + 1)
    before = shards(tmp_path)
    run_job(tmp_path, "job", SPEC)
    assert shards(tmp_path) == before
    assert made(tmp_path, "job") == undisturbed
    refused = subprocess.run([*command, "--of", "2", "--index", "2"], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "index of 0 to 1" in refused.stderr
