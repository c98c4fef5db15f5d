"""Rows of data set versions, trainings, generations and published models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, insert, select, update

from gateway.catalogue.catalogue import now
from gateway.catalogue.names import cleaned
from gateway.catalogue.tables import DATASETS, MODEL_VERSIONS, RUNS
from gateway.values import ENDED, FrozenDataset, JobState
from services.common.errors import NotFoundError

Kind = Literal["training", "generation"]

_FROZEN: TypeAdapter[FrozenDataset] = TypeAdapter(FrozenDataset)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A job that this gateway started.

    Attributes:
        run_id: Id of the job.
        kind: What it does.
        project_id: Its project.
        dataset_id: Data set version it works on.
        data_version: State of the project's data that the version holds.
        spec: What was asked for.
        state: State that the service told last.
        seen: The run as the service told it last; {} before.
        settled: Whether the gateway has nothing left to do for it.
        problem: Why the gateway could not do its part.
        accepted_change: For generations the change that added the wafers; "" before.
        created_at: When a person started it.
    """

    run_id: str
    kind: Kind
    project_id: str
    dataset_id: str
    data_version: int
    spec: Any
    state: JobState
    seen: dict[str, Any]
    settled: bool
    problem: dict[str, Any] | None
    accepted_change: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Published:
    """A published version of a model.

    Attributes:
        model_id: Name of the model.
        version: Its version.
        project_id: Project that it was taught in.
        run_id: Training that made it.
        score: Macro-F1, or AUROC where only normal wafers teach, on the locked test, else on the tune wafers.
        published_at: When.
        quantised: Whether it is the training's quantised variant.
    """

    model_id: str
    version: int
    project_id: str
    run_id: str
    score: float | None
    published_at: datetime
    quantised: bool = False


def add_dataset(
    connection: Connection, frozen: FrozenDataset, fingerprint: str, data_version: int, training_lots: list[str]
) -> None:
    """Writes a data set version down.

    Args:
        connection: Where to write.
        frozen: The version.
        fingerprint: Hash of everything that was frozen.
        data_version: State of the project's data that it holds.
        training_lots: Keys of the lots that teach.
    """
    connection.execute(
        insert(DATASETS).values(
            id=frozen.dataset_id,
            project_id=frozen.project_id,
            fingerprint=fingerprint,
            data_version=data_version,
            info=_FROZEN.dump_python(frozen, mode="json"),
            training_lots=training_lots,
            created_at=frozen.created_at,
        )
    )


def dataset_by_fingerprint(connection: Connection, project_id: str, fingerprint: str) -> FrozenDataset | None:
    """Returns the version that holds just this, or None."""
    query = select(DATASETS).where(DATASETS.c.project_id == project_id, DATASETS.c.fingerprint == fingerprint)
    row = connection.execute(query).one_or_none()
    return None if row is None else _FROZEN.validate_python(row.info)


def dataset(connection: Connection, dataset_id: str) -> FrozenDataset:
    """Returns a version.

    Raises:
        NotFoundError: There is none.
    """
    row = connection.execute(select(DATASETS).where(DATASETS.c.id == cleaned(dataset_id))).one_or_none()
    if row is None:
        raise NotFoundError("data set version", dataset_id[:80], reason="DATASET_NOT_FOUND")
    return _FROZEN.validate_python(row.info)


def datasets(connection: Connection, project_id: str) -> list[FrozenDataset]:
    """Returns the versions of a project, newest first."""
    query = select(DATASETS).where(DATASETS.c.project_id == project_id).order_by(DATASETS.c.created_at.desc())
    return [_FROZEN.validate_python(row.info) for row in connection.execute(query)]


def training_lots(connection: Connection, dataset_id: str) -> set[str] | None:
    """Returns the keys of the lots that teach in a version; None when the version is not known here."""
    row = connection.execute(select(DATASETS.c.training_lots).where(DATASETS.c.id == dataset_id)).one_or_none()
    return None if row is None else set(row.training_lots)


def add_run(
    connection: Connection,
    run_id: str,
    kind: Kind,
    project_id: str,
    dataset_id: str,
    data_version: int,
    spec: Any,
    request_id: str,
) -> RunRow:
    """Writes a job down; one that is there already is returned as it is."""
    known = connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none()
    if known is None:
        connection.execute(
            insert(RUNS).values(
                id=run_id,
                kind=kind,
                project_id=project_id,
                dataset_id=dataset_id,
                data_version=data_version,
                request_id=request_id or None,
                spec=spec,
                state=JobState.QUEUED.value,
                seen={},
                settled=False,
                accepted_change="",
                created_at=now(),
            )
        )
    return run(connection, run_id, kind)


def run(connection: Connection, run_id: str, kind: Kind) -> RunRow:
    """Returns a job.

    Raises:
        NotFoundError: There is none of this kind.
    """
    row = connection.execute(select(RUNS).where(RUNS.c.id == cleaned(run_id), RUNS.c.kind == kind)).one_or_none()
    if row is None:
        raise NotFoundError(kind, run_id[:80], reason="RUN_NOT_FOUND")
    return _to_run(row)


def run_by_request(connection: Connection, request_id: str) -> RunRow | None:
    """Returns the job that a request started, or None."""
    row = connection.execute(select(RUNS).where(RUNS.c.request_id == request_id)).one_or_none()
    return None if row is None else _to_run(row)


def runs(connection: Connection, project_id: str, kind: Kind) -> list[RunRow]:
    """Returns the jobs of a project, newest first."""
    query = select(RUNS).where(RUNS.c.project_id == project_id, RUNS.c.kind == kind).order_by(RUNS.c.number.desc())
    return [_to_run(row) for row in connection.execute(query)]


def unsettled(connection: Connection) -> list[RunRow]:
    """Returns all jobs for which the gateway has something left to do, oldest first."""
    return [_to_run(row) for row in connection.execute(select(RUNS).where(~RUNS.c.settled).order_by(RUNS.c.number))]


def see(connection: Connection, run_id: str, state: JobState, seen: dict[str, Any]) -> None:
    """Keeps what the service told. What ended stays as it ended."""
    ended = [each.value for each in ENDED]
    connection.execute(
        update(RUNS).where(RUNS.c.id == run_id, RUNS.c.state.not_in(ended)).values(state=state.value, seen=seen)
    )


def settle(connection: Connection, run_id: str, problem: dict[str, Any] | None = None) -> None:
    """Marks that the gateway has nothing left to do for a job."""
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(settled=True, problem=problem))


def lose(connection: Connection, run_id: str, problem: dict[str, Any]) -> None:
    """Marks a job that its service does not know any more as failed."""
    ended = [each.value for each in ENDED]
    failed = {"state": JobState.FAILED.value}
    connection.execute(update(RUNS).where(RUNS.c.id == run_id, RUNS.c.state.not_in(ended)).values(**failed, seen={}))
    settle(connection, run_id, problem)


def set_accepted(connection: Connection, run_id: str, change_id: str) -> None:
    """Marks that the wafers of a generation were added."""
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(accepted_change=change_id))


def add_version(connection: Connection, published: Published) -> None:
    """Writes a published version down; nothing happens when it is there."""
    if version_of_run(connection, published.run_id) is None:
        connection.execute(
            insert(MODEL_VERSIONS).values(
                model_id=published.model_id,
                version=published.version,
                project_id=published.project_id,
                run_id=published.run_id,
                score=published.score,
                published_at=published.published_at,
            )
        )


def version_of_run(connection: Connection, run_id: str) -> Published | None:
    """Returns what a training was published as, or None."""
    row = connection.execute(select(MODEL_VERSIONS).where(MODEL_VERSIONS.c.run_id == run_id)).one_or_none()
    return None if row is None else _to_published(row)


def add_quantised_version(connection: Connection, published: Published) -> None:
    """Writes down as what the quantised variant of a training was published, whose model was published before."""
    connection.execute(
        update(MODEL_VERSIONS)
        .where(MODEL_VERSIONS.c.run_id == published.run_id)
        .values(
            quantised_version=published.version,
            quantised_score=published.score,
            quantised_at=published.published_at,
        )
    )


def quantised_version_of_run(connection: Connection, run_id: str) -> Published | None:
    """Returns what the quantised variant of a training was published as, or None."""
    row = connection.execute(select(MODEL_VERSIONS).where(MODEL_VERSIONS.c.run_id == run_id)).one_or_none()
    return None if row is None else _to_quantised(row)


def versions(connection: Connection, model_id: str = "") -> list[Published]:
    """Returns the published versions of a model, or of all, newest version first."""
    query = select(MODEL_VERSIONS)
    if model_id:
        query = query.where(MODEL_VERSIONS.c.model_id == model_id)
    found = [each for row in connection.execute(query) for each in (_to_published(row), _to_quantised(row)) if each]
    return sorted(found, key=lambda each: (each.model_id, -each.version))


def _to_published(row: Row[Any]) -> Published:
    return Published(row.model_id, row.version, row.project_id, row.run_id, row.score, row.published_at)


def _to_quantised(row: Row[Any]) -> Published | None:
    if row.quantised_version is None:
        return None
    version, score, published_at = row.quantised_version, row.quantised_score, row.quantised_at
    return Published(row.model_id, version, row.project_id, row.run_id, score, published_at, quantised=True)


def _to_run(row: Row[Any]) -> RunRow:
    return RunRow(
        run_id=row.id,
        kind=row.kind,
        project_id=row.project_id,
        dataset_id=row.dataset_id,
        data_version=row.data_version,
        spec=row.spec,
        state=JobState(row.state),
        seen=row.seen,
        settled=row.settled,
        problem=row.problem,
        accepted_change=row.accepted_change,
        created_at=row.created_at,
    )
