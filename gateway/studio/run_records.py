"""Runs as the catalogue keeps them, and as people see them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection

from gateway.catalogue import runs
from gateway.catalogue.runs import RunRow
from gateway.values import (
    Evaluation,
    GenerationRequest,
    GenerationRun,
    Problem,
    QuantisedVariant,
    Task,
    TrainingOptions,
    TrainingResult,
    TrainingRun,
)

PROBLEM: TypeAdapter[Problem] = TypeAdapter(Problem)
TRAINING: TypeAdapter[TrainingRun] = TypeAdapter(TrainingRun)
GENERATION: TypeAdapter[GenerationRun] = TypeAdapter(GenerationRun)
OPTIONS: TypeAdapter[TrainingOptions] = TypeAdapter(TrainingOptions)
REQUESTS: TypeAdapter[tuple[GenerationRequest, ...]] = TypeAdapter(tuple[GenerationRequest, ...])


def training_run(connection: Connection, row: RunRow) -> TrainingRun:
    """Returns a training as it was last seen, with what the gateway knows of it."""
    if row.seen:
        run = TRAINING.validate_python(row.seen)
    else:
        options = OPTIONS.validate_python(row.spec)
        run = TrainingRun(row.run_id, "", row.dataset_id, options, row.state, 0.0, 0, "", row.created_at)
    published = runs.version_of_run(connection, row.run_id)
    quantised = runs.quantised_version_of_run(connection, row.run_id)
    return replace(
        run,
        project_id=row.project_id,
        created_at=row.created_at,
        problem=_problem(row) or run.problem,
        model_id="" if published is None else published.model_id,
        model_version=0 if published is None else published.version,
        quantised_version=0 if quantised is None else quantised.version,
    )


def generation_run(row: RunRow) -> GenerationRun:
    """Returns a generation as it was last seen, with what the gateway knows of it."""
    if row.seen:
        run = GENERATION.validate_python(row.seen)
    else:
        requests = REQUESTS.validate_python(row.spec["requests"])
        run = GenerationRun(
            row.run_id, "", row.dataset_id, requests, row.spec["seed"], row.state, 0.0, 0, "", row.created_at
        )
    return replace(
        run,
        project_id=row.project_id,
        created_at=row.created_at,
        problem=_problem(row) or run.problem,
        accepted=bool(row.accepted_change),
    )


def score(made: TrainingResult | QuantisedVariant | None) -> float | None:
    """Returns the figure by which what a training made is judged, on the locked test, else on the tune wafers.

    It is the macro-F1; where only normal wafers teach, the AUROC, and None without wafers of other classes.
    """
    judged: Evaluation | None = None if made is None else made.test or made.tune
    if judged is None:
        return None
    if judged.task is Task.NORMAL:
        return judged.auroc or None
    return judged.macro_f1


def dumped(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Returns a value as plain JSON."""
    return adapter.dump_python(value, mode="json")


def _problem(row: RunRow) -> Problem | None:
    return None if row.problem is None else PROBLEM.validate_python(row.problem)
