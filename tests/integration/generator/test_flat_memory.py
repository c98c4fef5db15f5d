"""However many wafers are made, they need the same memory."""

from pathlib import Path

from services.generator.domain import ClassRequest, GenerationSpec, VariationOptions
from tests.helpers.generation_worker import freeze_parents, run_job

FEW, MANY = 15_000, 105_000
"""Many make a file of more than 40 MB: whatever held the file, an id a wafer or more would show."""


def test_many_wafers_need_no_more_memory_than_few(tmp_path: Path) -> None:
    freeze_parents(tmp_path)
    peaks = []
    for count in (FEW, MANY):
        spec = GenerationSpec("parents", (ClassRequest("c", count, VariationOptions()),))
        run = run_job(tmp_path, f"job{count}", spec)
        assert run.result["classes"][0]["count"] == count
        peaks.append(run.peak_bytes)
    assert peaks[1] - peaks[0] < 16 * 2**20
