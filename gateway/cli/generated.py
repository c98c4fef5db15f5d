"""What a generation made: shown to people, told as JSON, written as folders."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gateway.cli.output import Output
from gateway.cli.wafers import Frozen, Grid
from gateway.values import GenerationRun, Proof
from services.common.dataset import Dataset, DatasetWafer, open_dataset
from services.common.store import BlobStore
from services.common.wafer_set import write_wafer_set

PER_FILE = 20_000
"""Most wafers of a wafer set that is written."""

_SHADES = ((255, 255, 255), (178, 190, 205), (200, 40, 40))
"""Colours of no die, passed die and failed die."""
_PIXELS = 4


def show_generation(output: Output, run: GenerationRun, frozen: Frozen) -> None:
    """Shows what was made and how true it is."""
    if run.result is None:
        return
    names = {each.class_id: each.display_name for each in frozen.classes}
    # Two tables, so that each fits a terminal of 80 columns.
    made = [
        (
            names.get(each.class_id, each.class_id),
            each.count,
            each.parents,
            each.rejected,
            f"{each.realism.copied_share:.1%}",
            f"{_figure(each.realism.precision, '.0%')} / {_figure(each.realism.recall, '.0%')}",
        )
        for each in run.result.classes
    ]
    output.table("Generated wafers", ("class", ">made", ">from", ">thrown out", ">copies", ">precision / recall"), made)
    compared = [
        (
            names.get(each.class_id, each.class_id),
            f"{each.realism.nearest_distance:.3f} / {each.realism.nearest_distance_real:.3f}",
            f"{each.realism.fail_fraction:.3f} / {each.realism.fail_fraction_real:.3f}",
            f"{_figure(each.realism.frechet_distance, '.3f')} / {_figure(each.realism.frechet_distance_real, '.3f')}",
            f"{_figure(each.realism.recognised_share, '.0%')} / {_figure(each.realism.recognised_share_real, '.0%')}",
        )
        for each in run.result.classes
    ]
    output.table("Made / real", ("class", ">distance", ">fails", ">Frechet", ">recognised"), compared)
    output.say(
        f"data set version {run.result.dataset_id}   {run.result.seconds:.1f} s   "
        f"peak memory {run.result.peak_memory_bytes / 2**20:,.0f} MiB"
    )
    if run.result.proof is not None:
        output.say(proof_text(run.result.proof))


def proof_text(proof: Proof) -> str:
    """Says whether generated wafers help."""
    verdicts = {"helps": "They help", "harms": "They do harm", "unclear": "It is not shown that they help"}
    return (
        f"{verdicts[proof.verdict]}: macro-F1 {proof.with_generated:.3f} with them, {proof.without:.3f} without "
        f"({proof.difference:+.3f}, 95 % interval {proof.low:+.3f} to {proof.high:+.3f}; judged by "
        f"{proof.judged_wafers} wafers of {proof.judged_lots} lots set aside)."
    )


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def generation_json(run: GenerationRun, frozen: Frozen) -> dict[str, Any]:
    """Returns a generation as JSON."""
    names = {each.class_id: each.display_name for each in frozen.classes}
    result = run.result
    return {
        "job": f"generationJobs/{run.run_id}",
        "dataset_version": f"datasetVersions/{result.dataset_id}" if result else "",
        "seconds": result.seconds if result else 0.0,
        "peak_memory_bytes": result.peak_memory_bytes if result else 0,
        "proof": asdict(result.proof) if result and result.proof else None,
        "classes": {
            names.get(each.class_id, each.class_id): {
                "count": each.count,
                "parents": each.parents,
                "rejected": each.rejected,
                **asdict(each.realism),
            }
            for each in (result.classes if result else ())
        },
    }


def write_generation(
    store: BlobStore, run: GenerationRun, frozen: Frozen, target: Path, file_format: str
) -> dict[str, int]:
    """Writes the wafers into one folder a class; returns how many each got."""
    if run.result is None:
        return {}
    names = {each.class_id: each.display_name for each in frozen.classes}
    with open_dataset(store, run.result.dataset_id) as dataset:
        return write_folders(dataset, names, target, file_format)


def write_folders(
    dataset: Dataset, names: Mapping[str, str], target: Path, file_format: str, per_file: int = PER_FILE
) -> dict[str, int]:
    """Writes the wafers of a data set version into one folder a class, in flat memory.

    Args:
        dataset: The data set version; wafers of a class come one after the other.
        names: Name of each class.
        target: Folder of the folders.
        file_format: `npz` or `png`.
        per_file: Most wafers of a wafer set; more go into further ones.

    Returns:
        Wafers of each class, by name.
    """
    counts: dict[str, int] = {}
    for key, wafers in groupby(dataset.iter_wafers(), attrgetter("class_id")):
        name = names[key]
        folder = target / name
        folder.mkdir(parents=True)
        counts[name] = 0
        for number, part in enumerate(_batched(wafers, per_file)):
            if file_format == "npz":
                path = folder / ("generated.npz" if number == 0 else f"generated-{number:04d}.npz")
                lots = [wafer.lot for wafer in part]
                write_wafer_set(path, [wafer.dies for wafer in part], labels=[name] * len(part), groups=lots)
            else:
                for index, wafer in enumerate(part, counts[name]):
                    (folder / f"generated-{index:06d}.png").write_bytes(picture(wafer.dies))
            counts[name] += len(part)
    return counts


def _batched(wafers: Iterator[DatasetWafer], size: int) -> Iterator[list[DatasetWafer]]:
    while batch := list(islice(wafers, size)):
        yield batch


def picture(grid: Grid) -> bytes:
    """Returns a wafer as PNG, a few pixels a die.

    Args:
        grid: The wafer. The margin around it tells readers which colour means no die; they cut it off.
    """
    colours = np.array(_SHADES, np.uint8)[np.pad(grid, 1)].repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
