"""Threads follow the cores that the container may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.predictor.cores import usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", CORES),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", min(2, CORES)),
        ("99999999 100000", CORES),
        ("something else", CORES),
        ("100000 0", CORES),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CORES), ("100000", 1), ("250000", min(3, CORES))])
def test_the_quota_of_an_older_kernel_counts(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == expected


def test_without_a_limit_every_core_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES
