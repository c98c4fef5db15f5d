"""Wafers from files and folders, for teaching and for questions."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.catalogue.names import name_key
from gateway.catalogue.patterns import NONE, guess_pattern, label_parts
from gateway.teaching_sides import sides_of
from gateway.values import Task
from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, new_dataset_id
from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, TeachwaferError
from services.common.formats import Skipped, read_wafers
from services.common.store import BlobStore
from services.common.wafer_map import WaferMap, dies_sha256
from services.common.wafer_set import read_wafer_set

Grid = NDArray[np.uint8]


@dataclass(slots=True)
class TaughtWafers:
    """Wafers whose class is known.

    Attributes:
        grids: Die grids.
        labels: Class of each, as the file or folder says it.
        lots: Lot of each, "" when unknown.
        skipped: What could not be read.
        unlabelled: Wafers left out because nothing says their class.
    """

    grids: list[Grid] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    lots: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unlabelled: int = 0

    def add(self, grid: Grid, label: str, lot: str) -> None:
        """Adds a wafer, or counts it where it has no label."""
        if not label:
            self.unlabelled += 1
            return
        self.grids.append(grid)
        self.labels.append(label)
        self.lots.append(lot)

    def __len__(self) -> int:
        return len(self.grids)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A data set version made of files.

    Attributes:
        dataset_id: Its id.
        task: What a model shall tell.
        classes: Its classes.
        counts: Wafers that show each class on each side.
        warnings: Sentences about classes that a side does without.
    """

    dataset_id: str
    task: Task
    classes: tuple[DatasetClass, ...]
    counts: dict[str, dict[str, int]]
    warnings: tuple[str, ...]


def read_taught(path: Path, source: str = "") -> TaughtWafers:
    """Reads wafers and their classes.

    Args:
        path: A folder with one folder a class, or one file that carries labels, as a wafer-set `.npz`.
        source: Of a wafer set, only the wafers of this source; "" takes all.

    Raises:
        NotFoundError: There is no such file or folder.
        InvalidArgumentError: It holds no labelled wafer.
    """
    if not path.exists():
        raise NotFoundError("file or folder", str(path))
    taught = _read_folder(path) if path.is_dir() else _read_file(path, source)
    if not taught.grids:
        reasons = "".join(f" {each.name}: {each.reason}" for each in taught.skipped[:3])
        raise InvalidArgumentError(
            f"Expected wafers with a class: a folder with one folder a class, or a wafer set with labels. "
            f"Received: {path} without any.{reasons}",
            reason="NO_WAFERS",
        )
    return taught


def read_asked(paths: Iterable[Path]) -> tuple[list[tuple[str, WaferMap]], list[Skipped]]:
    """Reads wafers to be classified from files of any known format, and from folders of such files.

    Args:
        paths: Files and folders.

    Returns:
        Name and map of each wafer, and what could not be read.

    Raises:
        NotFoundError: A path does not exist.
    """
    found: list[tuple[str, WaferMap]] = []
    skipped: list[Skipped] = []
    for path in paths:
        if not path.exists():
            raise NotFoundError("file or folder", str(path))
        for file in _files(path) if path.is_dir() else [path]:
            report = read_wafers(file.name, file)
            names = _numbered(file, len(report.wafers))
            found += [(name, each.map) for name, each in zip(names, report.wafers, strict=True)]
            skipped += report.skipped
    return found, skipped


def freeze(
    store: BlobStore, taught: TaughtWafers, *, hold_back: bool, seed: int = 0, task: Task = Task.SINGLE
) -> Frozen:
    """Freezes wafers into a data set version.

    Args:
        store: Where it goes.
        taught: The wafers.
        hold_back: Whether to hold back wafers for tuning and for the locked test, by lot; False puts all into training.
        seed: Another seed, another split.
        task: What a model shall tell. With several patterns a label `Center+Scratch` means both classes.

    Raises:
        FailedPreconditionError: Fewer than two classes were given to teach, or no normal wafer where only these teach.
    """
    shown = shown_classes(taught.labels, task)
    classes = dataset_classes(name for names in shown for name in names)
    normal = next((each.display_name for each in classes if each.pattern == NONE), "")
    if hold_back:
        _check_taught(task, classes, normal)
    ids = {each.display_name: each.class_id for each in classes}
    sides, warnings = [Split.TRAIN] * len(taught), tuple[str, ...]()
    if hold_back:
        digests = [dies_sha256(grid) for grid in taught.grids]
        split = sides_of(task, shown, taught.lots, digests, normal, seed)
        sides, warnings = split.sides, split.warnings
    dataset_id = new_dataset_id()
    with DatasetWriter(store, dataset_id, classes) as writer:
        writer.add(
            DatasetWafer(
                f"{index:07d}",
                grid,
                ids[names[0]],
                lot,
                Origin.UPLOADED,
                split=side,
                also=tuple(ids[name] for name in names[1:]),
            )
            for index, (grid, names, lot, side) in enumerate(zip(taught.grids, shown, taught.lots, sides, strict=True))
        )
        writer.finish()
    counted = Counter((name, side) for names, side in zip(shown, sides, strict=True) for name in names)
    counts = {each.display_name: {s.value: counted[each.display_name, s] for s in Split} for each in classes}
    return Frozen(dataset_id, task, classes, counts, warnings)


def shown_classes(labels: Sequence[str], task: Task) -> list[tuple[str, ...]]:
    """Returns the classes that each label names: one, or those joined by `+` where a wafer may show several."""
    if task is not Task.SEVERAL:
        return [(label,) for label in labels]
    # Spelled alike, so that "center" and "Center" are one class wherever they stand.
    spelled: dict[str, str] = {}
    return [
        tuple(dict.fromkeys(spelled.setdefault(name_key(part), part) for part in label_parts(label)))
        for label in labels
    ]


def _check_taught(task: Task, classes: Sequence[DatasetClass], normal: str) -> None:
    """Refuses classes that cannot teach; raises as `freeze`."""
    if task is Task.NORMAL:
        if not normal:
            raise FailedPreconditionError(
                f"Expected normal wafers, in a folder or with a label as {NONE!r} or 'normal'. Received: "
                f"{', '.join(each.display_name for each in classes)}.",
                reason="NO_NORMAL_WAFERS",
            )
    elif len(classes) < 2:
        raise FailedPreconditionError(
            f"Expected wafers of at least two classes. Received: {len(classes)}. Add a folder with wafers of another "
            "class, as wafers without a defect.",
            reason="TOO_FEW_CLASSES",
        )


def dataset_classes(labels: Iterable[str]) -> tuple[DatasetClass, ...]:
    """Returns a class for each label, `none` first, then by name. The same labels give the same ids, always."""
    names = sorted(set(labels), key=lambda name: (guess_pattern(name) != "none", name.casefold(), name))
    return tuple(DatasetClass(class_id(name), name, guess_pattern(name)) for name in names)


def class_id(label: str) -> str:
    """Returns the stable id of the class that a label means: the label where it is fit for an id, else a hash of it."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}", label):
        return label
    return f"class-{hashlib.sha256(label.encode()).hexdigest()[:12]}"


def _read_folder(folder: Path) -> TaughtWafers:
    """Reads a folder with one folder a class; files beside those folders carry their own labels."""
    taught = TaughtWafers()
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        for file in _files(entry) if entry.is_dir() else [entry]:
            report = read_wafers(str(file.relative_to(folder)), file)
            taught.skipped += report.skipped
            for each in report.wafers:
                label = entry.name if entry.is_dir() else each.label or ""
                taught.add(each.map.dies, label, each.map.identity.lot)
    return taught


def _read_file(path: Path, source: str) -> TaughtWafers:
    """Reads one file with labels."""
    taught = TaughtWafers()
    try:
        wafers = read_wafer_set(path)
    except InvalidArgumentError:
        if source:
            raise
        return _read_labelled(path)
    if source and source not in set(wafers.sources or ()):
        known = ", ".join(sorted(set(wafers.sources or ()))) or "none"
        raise InvalidArgumentError(f"Expected a source of the wafer set ({known}). Received: {source!r}.")
    count = len(wafers)
    for grid, label, lot, origin in zip(
        wafers.grids,
        wafers.labels or [""] * count,
        wafers.groups or [""] * count,
        wafers.sources or [""] * count,
        strict=True,
    ):
        if not source or origin == source:
            # Lots of two sources may have the same name.
            taught.add(grid, label, f"{origin}/{lot}" if lot and origin and not source else lot)
    return taught


def _read_labelled(path: Path) -> TaughtWafers:
    """Reads a file of any other format whose wafers carry labels."""
    taught = TaughtWafers()
    report = read_wafers(path.name, path)
    taught.skipped += report.skipped
    for each in report.wafers:
        taught.add(each.map.dies, each.label or "", each.map.identity.lot)
    return taught


def _files(folder: Path) -> list[Path]:
    """Returns the files below a folder, in order, without hidden ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _numbered(file: Path, count: int) -> list[str]:
    """Returns a name for each wafer of a file."""
    return [str(file)] if count == 1 else [f"{file}#{index}" for index in range(count)]


def failure_text(error: TeachwaferError) -> str:
    """Returns an error in one line."""
    return " ".join(error.message.split())


def described(values: Sequence[Skipped], limit: int = 5) -> str:
    """Returns what was skipped, in a few lines."""
    lines = [f"  {each.name}: {each.reason}" for each in values[:limit]]
    if len(values) > limit:
        lines.append(f"  and {len(values) - limit} more")
    return "\n".join(lines)
