"""Freezing a project into data set versions. Blocks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from gateway.catalogue import classes, projects, runs, wafers
from gateway.catalogue.catalogue import Catalogue, now
from gateway.catalogue.wafer_rows import grid_of
from gateway.studio import health
from gateway.studio.disk import disk_errors
from gateway.teaching_sides import sides_of
from gateway.values import FrozenDataset, Project, Task, WaferClass
from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, new_dataset_id
from services.common.errors import FailedPreconditionError
from services.common.store import BlobStore


@dataclass(frozen=True, slots=True)
class _Plan:
    """What goes where.

    Attributes:
        classes: Classes with real wafers, in order.
        data_version: State of the project's data.
        fingerprint: Hash of everything that is frozen.
        sides: Side of each real wafer, by id.
        generated: Ids of generated wafers that may teach.
        left_out: Generated wafers left out, because a lot that they were made from measures now.
        training_lots: Keys of the lots that teach.
        warnings: Sentences about classes that a side does without.
    """

    classes: list[WaferClass]
    data_version: int
    fingerprint: str
    sides: dict[str, Split]
    generated: set[str]
    left_out: int
    training_lots: list[str]
    warnings: tuple[str, ...]


def freeze(catalogue: Catalogue, store: BlobStore, project_id: str, seed: int) -> tuple[FrozenDataset, int]:
    """Freezes the enabled classes of a project, real and generated wafers apart.

    Args:
        catalogue: The catalogue.
        store: Where data set versions lie.
        project_id: The project.
        seed: Another seed, another split.

    Returns:
        The version, and the state of the project's data that it holds.

    Raises:
        NotFoundError: There is no such project.
        FailedPreconditionError: Fewer than two classes have a wafer (reason TOO_FEW_CLASSES), or, where only normal
            wafers teach, the normal class has none (reason NO_NORMAL_WAFERS).
    """
    with catalogue.read() as connection:
        plan = _plan(connection, project_id, seed)
        known = runs.dataset_by_fingerprint(connection, project_id, plan.fingerprint)
        if known is not None:
            return known, plan.data_version
        with disk_errors("the data set version"):
            frozen = _write(connection, store, project_id, plan)
    with catalogue.write() as connection:
        projects.lock(connection, project_id)
        # Somebody may have frozen the same wafers meanwhile; then theirs counts.
        known = runs.dataset_by_fingerprint(connection, project_id, plan.fingerprint)
        if known is None:
            runs.add_dataset(connection, frozen, plan.fingerprint, plan.data_version, plan.training_lots)
    if known is not None:
        for dataset_id in filter(None, (frozen.dataset_id, frozen.generated_dataset_id)):
            store.delete_prefix(f"datasets/{dataset_id}")
    return known or frozen, plan.data_version


def _plan(connection: Connection, project_id: str, seed: int) -> _Plan:
    project = projects.get(connection, project_id)
    enabled = [each for each in classes.live(connection, project_id) if each.enabled]
    counts = wafers.counts(connection, project_id)
    taught = [each for each in enabled if each.class_id in counts and counts[each.class_id].real]
    _check_classes(project, taught)
    rows = list(_slim_rows(connection, project_id, taught))
    digest = hashlib.sha256(f"1 {seed}".encode())
    for each in taught:
        digest.update(f"\n{each.class_id} {each.name} {each.pattern}".encode())
    for row in rows:
        digest.update(f"\n{row.id} {row.class_id} {row.sha256} {row.lot} {row.origin} {row.parent_id}".encode())
        if row.also:
            digest.update(f" + {' '.join(row.also)}".encode())
    real = [row for row in rows if not row.generated]
    split = sides_of(
        project.task,
        [(row.class_id, *row.also) for row in real],
        [row.lot for row in real],
        [row.sha256 for row in real],
        next((each.class_id for each in taught if each.none), ""),
        seed,
    )
    sides = {row.id: side for row, side in zip(real, split.sides, strict=True)}
    lots = {_lot_key(row.lot, row.sha256): sides[row.id] for row in real}
    made = [row for row in rows if row.generated]
    generated = set(_legal(connection, made, sides, lots))
    return _Plan(
        classes=taught,
        data_version=projects.data_version(connection, project_id),
        fingerprint=digest.hexdigest(),
        sides=sides,
        generated=generated,
        left_out=len(made) - len(generated),
        training_lots=sorted(key for key, side in lots.items() if side is Split.TRAIN),
        warnings=tuple(_named(sentence, taught) for sentence in split.warnings),
    )


def _check_classes(project: Project, taught: list[WaferClass]) -> None:
    """Refuses to freeze what could never be taught; raises as `freeze`."""
    if project.task is Task.NORMAL:
        if not any(each.none for each in taught):
            raise FailedPreconditionError(
                "Expected normal wafers in the enabled class of wafers without a pattern. Received: none. Add at least "
                f"{health.NORMAL_FLOOR}.",
                subject=f"projects/{project.project_id}",
                reason="NO_NORMAL_WAFERS",
                metadata={"needed": str(health.NORMAL_FLOOR)},
            )
    elif len(taught) < 2:
        raise FailedPreconditionError(
            f"Expected at least two enabled classes with wafers. Received: {len(taught)}. Add wafers to another class.",
            subject=f"projects/{project.project_id}",
            reason="TOO_FEW_CLASSES",
            metadata={"classes": str(len(taught)), "needed": "2"},
        )


def _legal(connection: Connection, made: list[_Slim], sides: dict[str, Split], lots: dict[str, Split]) -> Iterator[str]:
    """Yields the ids of generated wafers from which no lot that measures now can be learned."""
    measuring = {key for key, side in lots.items() if side is not Split.TRAIN}
    legal_base: dict[str, bool] = {}
    for row in made:
        if row.origin == Origin.LEARNED:
            if row.base_dataset not in legal_base:
                taught = runs.training_lots(connection, row.base_dataset)
                legal_base[row.base_dataset] = taught is not None and not taught & measuring
            if legal_base[row.base_dataset]:
                yield row.id
        elif sides.get(row.parent_id, Split.TRAIN) is Split.TRAIN and f"lot:{row.lot}" not in measuring:
            yield row.id


def _write(connection: Connection, store: BlobStore, project_id: str, plan: _Plan) -> FrozenDataset:
    """Writes both parts; each becomes visible when it is whole."""
    described = [DatasetClass(each.class_id, each.name, each.pattern) for each in plan.classes]
    dataset_id, generated_id = new_dataset_id(), ""
    with DatasetWriter(store, dataset_id, described) as writer:
        rows = _rows(connection, project_id, plan.classes)
        writer.add(_wafer(row, shown, plan.sides[row.id]) for row, shown in rows if row.id in plan.sides)
        writer.finish()
    if plan.generated:
        generated_id = new_dataset_id()
        with DatasetWriter(store, generated_id, described, parent=dataset_id) as writer:
            rows = _rows(connection, project_id, plan.classes)
            writer.add(_wafer(row, shown, Split.TRAIN) for row, shown in rows if row.id in plan.generated)
            writer.finish()
    counted = Counter(side.value for side in plan.sides.values())
    return FrozenDataset(
        dataset_id=dataset_id,
        project_id=project_id,
        wafers={side.value: counted[side.value] for side in Split},
        generated_dataset_id=generated_id,
        generated=len(plan.generated),
        generated_left_out=plan.left_out,
        warnings=plan.warnings,
        created_at=now(),
    )


@dataclass(frozen=True, slots=True)
class _Slim:
    """What of a wafer decides where it goes."""

    id: str
    class_id: str
    sha256: str
    lot: str
    origin: str
    generated: bool
    parent_id: str
    base_dataset: str
    also: tuple[str, ...]


def _rows(
    connection: Connection, project_id: str, taught: list[WaferClass], *, dies: bool = True
) -> Iterator[tuple[Row[Any], tuple[str, ...]]]:
    """Yields the rows of wafers that show a taught class, each with those that it shows, its own one first.

    A wafer of a class that is left out stands in the first further one that it shows.
    """
    known = {each.class_id for each in taught}
    everywhere = [each.class_id for each in classes.live(connection, project_id)]
    for row, also in wafers.walk(connection, project_id, everywhere, dies=dies):
        shown = tuple(each for each in (row.class_id, *also) if each in known)
        if shown:
            yield row, shown


def _slim_rows(connection: Connection, project_id: str, taught: list[WaferClass]) -> Iterator[_Slim]:
    for row, shown in _rows(connection, project_id, taught, dies=False):
        first, *also = shown
        yield _Slim(
            row.id, first, row.sha256, row.lot, row.origin, row.generated, row.parent_id, row.base_dataset, tuple(also)
        )


def _wafer(row: Row[Any], shown: tuple[str, ...], side: Split) -> DatasetWafer:
    first, *also = shown
    return DatasetWafer(row.id, grid_of(row), first, row.lot, Origin(row.origin), row.parent_id, side, also=tuple(also))


def _lot_key(lot: str, sha256: str) -> str:
    """Returns the key of a lot; a wafer without one is a lot of its own."""
    return f"lot:{lot}" if lot else f"sha:{sha256}"


def _named(sentence: str, taught: list[WaferClass]) -> str:
    """Puts the names of classes where a sentence has their ids."""
    for each in taught:
        sentence = sentence.replace(each.class_id, each.name)
    return sentence
