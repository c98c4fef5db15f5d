"""The command of the Indexed Job for shards, run as its pods would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.common.jobs.model import ExitCode
from services.generator.domain import ClassRequest, GenerationSpec, VariationOptions
from services.generator.production import SHARD
from tests.deploy.test_manifests import K8S, render
from tests.helpers.generation_worker import freeze_parents, prepared, run_job

COUNT = 4 * SHARD + 100
SPEC = GenerationSpec("parents", (ClassRequest("c", COUNT, VariationOptions()),), seed=5)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    (document,) = render(K8S / "jobs" / "shards")
    return document


def run_pod(job: dict[str, Any], home: Path, index: int) -> subprocess.CompletedProcess[str]:
    """Runs the container of a pod, with a folder in the place of the data volume and "job" in that of JOB_ID."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (data,) = (each["mountPath"] for each in container["volumeMounts"] if each["name"] == "data")
    command = [
        each.replace(data, str(home)).replace("JOB_ID", "job") for each in [*container["command"], *container["args"]]
    ]
    assert command[0] == "python"
    environment = {"JOB_COMPLETION_INDEX": str(index), "PATH": ""}
    return subprocess.run([sys.executable, *command[1:]], check=False, capture_output=True, text=True, env=environment)


def shards(home: Path) -> dict[str, int]:
    """Returns the finished shards, with the time at which the file of each was written, nanoseconds."""
    notes = (home / "store" / "shards").glob("*/*.json")
    return {note.stem: note.with_suffix(".arrow").stat().st_mtime_ns for note in notes}


def test_pods_share_the_shards_and_one_that_starts_anew_makes_none(job: dict[str, Any], tmp_path: Path) -> None:
    freeze_parents(tmp_path, side=24)
    prepared(tmp_path, "job", SPEC)
    pods = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == pods == 4
    made = []
    for index in range(pods):
        done = run_pod(job, tmp_path, index)
        assert done.returncode == 0, done.stderr
        made.append(int(done.stdout.split()[0]))
    assert made == [SHARD + 100, SHARD, SHARD, SHARD]
    finished = shards(tmp_path)
    assert sorted(finished) == [f"{index:06d}" for index in range(5)]
    assert run_pod(job, tmp_path, 0).stdout.split() == [str(SHARD + 100), "wafers"]
    assert shards(tmp_path) == finished
    assert run_job(tmp_path, "job", SPEC).result["classes"][0]["count"] == COUNT
    assert shards(tmp_path) == finished


def test_a_pod_without_its_job_fails_for_good_and_says_why(job: dict[str, Any], tmp_path: Path) -> None:
    done = run_pod(job, tmp_path, 0)
    assert done.returncode == ExitCode.BAD_CONFIG
    assert "Expected the folder of a generation job that was started" in done.stderr
