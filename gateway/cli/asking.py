"""`teachwafer predict` and `teachwafer evaluate`: questions to a published model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from gateway.catalogue.names import name_key
from gateway.cli.options import Home, Json, Local, Model, PredictorAddress, Reach, Session, parse_model
from gateway.cli.output import Output, evaluation_json, show_evaluation
from gateway.cli.wafers import TaughtWafers, described, read_asked, read_taught
from gateway.values import ClassScore, Decision, Evaluation, Interval, ModelState, PredictorAnswer
from services.common import evaluation as scores
from services.common.errors import InvalidArgumentError
from services.common.wafer_map import WaferMap

PROTOCOLS = ("full", "few-shot", "several", "unknown", "generated", "label-noise", "ablation")
"""What the trainer's own program measures; `python -m services.trainer.protocols NAME --help` lists their options."""

_LOT = 1024
_SHOWN = 200


def predict(
    files: Annotated[
        list[Path], typer.Argument(help="Files of any supported format, or folders of them.", show_default=False)
    ],
    model: Model,
    top: Annotated[int, typer.Option(min=1, max=100, help="Classes to list for each wafer.")] = 3,
    home: Home = None,
    local: Local = False,
    predictor_address: PredictorAddress = "",
    as_json: Json = False,
) -> None:
    """Tell the defect class of the wafers in files."""
    model_id, version = parse_model(model)
    reach = Reach.to(home, local, predictor=predictor_address)
    asyncio.run(_predict(Output(as_json), reach, files, model_id, version, top))


def evaluate(
    wafers: Annotated[
        Path, typer.Option(help="Wafer-set .npz with labels, or a folder with one folder a class.", show_default=False)
    ],
    model: Model = "",
    protocol: Annotated[
        str,
        typer.Option(
            help="Instead of a model, measure how well these wafers can be learned: full (a whole training), few-shot "
            "(5 to 50 wafers a class), several (several patterns a wafer), unknown (patterns nobody taught), generated "
            "(what generated wafers add), "
            "label-noise (wrong labels), ablation (several weights)."
        ),
    ] = "",
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of the protocol, after --.", show_default=False)
    ] = None,
    source: Annotated[str, typer.Option(help="Of a wafer set, only the wafers of this source.")] = "",
    home: Home = None,
    local: Local = False,
    predictor_address: PredictorAddress = "",
    as_json: Json = False,
) -> None:
    """Measure a model on labelled wafers, through the model server.

    Wafers whose class the model was not taught are not scored; it is told how many of them it called unknown.
    """
    if protocol:
        raise typer.Exit(_run_protocol(protocol, wafers, source, as_json, options or []))
    if options:
        raise InvalidArgumentError(f"Expected options after -- with --protocol only. Received: {' '.join(options)}.")
    model_id, version = parse_model(model)
    reach = Reach.to(home, local, predictor=predictor_address)
    asyncio.run(_evaluate(Output(as_json), reach, wafers, source, model_id, version))


def _run_protocol(protocol: str, wafers: Path, source: str, as_json: bool, options: list[str]) -> int:
    """Has the trainer's own program measure; returns its exit code.

    A command and not an import: the gateway runs without the trainer's code.
    """
    if protocol not in PROTOCOLS:
        raise InvalidArgumentError(
            f"Expected one of {', '.join(PROTOCOLS)}. Received: {protocol[:100]!r}.", field="protocol"
        )
    command = [sys.executable, "-m", "services.trainer.protocols", protocol, "--wafers", str(wafers)]
    command += ["--source", source] if source else []
    command += ["--json"] if as_json else []
    command += options
    return subprocess.run(command, check=False).returncode  # noqa: S603


async def _predict(output: Output, reach: Reach, files: list[Path], model_id: str, version: int, top: int) -> None:
    """Reads, asks, tells."""
    found, skipped = read_asked(files)
    if skipped:
        output.warn(f"{len(skipped)} files could not be read:\n{described(skipped)}")
    if not found:
        raise InvalidArgumentError("Expected at least one wafer in the files. Received: none.", reason="NO_WAFERS")
    async with reach.services(output, "predictor") as session:
        await make_ready(session, model_id)
        answered, answers = await session.clients.predictor.classify(
            model_id, [each for _, each in found], version=version
        )
    rows = [
        (name, told.name, f"{told.probability:.3f}", told.decision.value.replace("_", " "), _others(told, top))
        for (name, _), told in zip(found, answers, strict=True)
    ]
    columns = ("wafer", "class", ">probability", "decision", "then")
    output.table(f"{model_id}:{answered}", columns, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        output.say(f"... and {len(rows) - _SHOWN} more; --json lists all.")
    counted = Counter(told.name or "failed" for told in answers)
    output.say(f"{len(answers)} wafers: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))
    output.result(
        {
            "model": model_id,
            "version": answered,
            "answers": [_answer_json(name, told, top) for (name, _), told in zip(found, answers, strict=True)],
            "skipped": [{"name": each.name, "reason": each.reason} for each in skipped],
        }
    )


async def _evaluate(output: Output, reach: Reach, path: Path, source: str, model_id: str, version: int) -> None:
    """Reads, asks, measures, tells."""
    taught = read_taught(path, source)
    async with reach.services(output, "predictor") as session:
        await make_ready(session, model_id)
        told = await ask(session, taught, model_id, version)
    evaluation, extra = measure(taught, told[1])
    show_evaluation(output, f"{model_id}:{told[0]} on {path.name}", evaluation)
    for name, facts in extra["not_taught"].items():
        output.warn(
            f"{facts['wafers']} wafers of {name!r}, which the model was not taught; called unknown: {facts['unknown']}"
        )
    output.result({"model": model_id, "version": told[0], **(evaluation_json(evaluation) or {}), **extra})


async def make_ready(session: Session, model_id: str) -> None:
    """Loads a model unless it serves.

    Args:
        session: The services.
        model_id: Name of the model.

    Raises:
        NotFoundError: There is no such model.
    """
    ready = {each.model_id for each in await session.clients.predictor.loaded() if each.state is ModelState.READY}
    if model_id not in ready:
        await session.clients.predictor.load(model_id)


async def ask(
    session: Session, taught: TaughtWafers, model_id: str, version: int = 0
) -> tuple[int, list[PredictorAnswer]]:
    """Classifies wafers lot by lot of 1,024.

    Args:
        session: The services.
        taught: The wafers.
        model_id: Name of the model.
        version: Version; 0 means the newest that is loaded.

    Returns:
        Version that answered, and an answer a wafer.
    """
    answers: list[PredictorAnswer] = []
    for start in range(0, len(taught), _LOT):
        maps = [WaferMap(grid) for grid in taught.grids[start : start + _LOT]]
        version, told = await session.clients.predictor.classify(model_id, maps, version=version)
        answers += told
    return version, answers


def measure(taught: TaughtWafers, answers: list[PredictorAnswer]) -> tuple[Evaluation, dict[str, Any]]:
    """Returns the scores of answers.

    Args:
        taught: Wafers with their classes.
        answers: What a model said of each.

    Returns:
        Scores over the wafers of taught classes that were answered; and beside them `failed`, the wafers that could not
        be classified, and `not_taught`, what became of the wafers of other classes.

    Raises:
        InvalidArgumentError: No wafer has a class that the model was taught.
    """
    answered = next((each for each in answers if each.probabilities), None)
    classes = sorted((each[0], each[1]) for each in answered.probabilities) if answered else []
    index_of = {class_id: index for index, (class_id, _) in enumerate(classes)}
    index_of_label = _indexes_of_labels(set(taught.labels), classes)
    rows: list[NDArray[np.float32]] = []
    labels, lots, accepted = [], [], []
    others: dict[str, Counter[str]] = {}
    failed = 0
    for label, lot, told in zip(taught.labels, taught.lots, answers, strict=True):
        if told.decision is Decision.FAILED:
            failed += 1
        elif label not in index_of_label:
            others.setdefault(label, Counter())[told.decision.value] += 1
        else:
            row = np.zeros(len(classes), np.float32)
            for class_id, _, probability in told.probabilities:
                row[index_of[class_id]] = probability
            rows.append(row)
            labels.append(index_of_label[label])
            lots.append(lot)
            accepted.append(told.decision is Decision.ACCEPTED)
    if not rows:
        known = ", ".join(name for _, name in classes)
        raise InvalidArgumentError(f"Expected wafers of a class that the model was taught ({known}). Received: none.")
    scored = scores.evaluate(np.stack(rows), np.array(labels, np.int64), lots, np.array(accepted, np.bool_))
    not_taught = {
        label: {"wafers": counted.total(), "unknown": counted[Decision.UNKNOWN.value]}
        for label, counted in sorted(others.items())
    }
    return _named(scored, classes), {"failed": failed, "not_taught": not_taught}


def _indexes_of_labels(labels: set[str], classes: list[tuple[str, str]]) -> dict[str, int]:
    """Returns which class of the model each label means: by id, by name, by name whatever its capitals and spaces."""
    by_id = {class_id: index for index, (class_id, _) in enumerate(classes)}
    by_name = {name: index for index, (_, name) in enumerate(classes)}
    by_key = {name_key(name): index for index, (_, name) in enumerate(classes)}
    found = {label: by_name.get(label, by_id.get(label, by_key.get(name_key(label)))) for label in labels}
    return {label: index for label, index in found.items() if index is not None}


def _named(scored: scores.Evaluation, classes: list[tuple[str, str]]) -> Evaluation:
    """Returns scores with the names of the classes."""
    return Evaluation(
        wafers=scored.wafers,
        lots=scored.lots,
        macro_f1=scored.macro_f1,
        macro_f1_interval=Interval(*scored.macro_f1_interval),
        accuracy=scored.accuracy,
        classes=tuple(
            ClassScore(
                class_id=class_id,
                name=name,
                wafers=each.wafers,
                lots=each.lots,
                found=each.found,
                false_alarms=each.false_alarms,
                recall=each.recall,
                recall_interval=Interval(*each.recall_interval),
                precision=each.precision,
                f1=each.f1,
            )
            for (class_id, name), each in zip(classes, scored.classes, strict=True)
        ),
        confusion=scored.confusion,
        accepted_share=scored.accepted_share,
        accepted_error=scored.accepted_error,
        calibration_error=scored.expected_calibration_error,
    )


def _others(told: PredictorAnswer, top: int) -> str:
    """Returns the classes after the first, in one cell."""
    if told.problem is not None:
        return told.problem.message
    return ", ".join(f"{name} {probability:.3f}" for _, name, probability in told.probabilities[1:top])


def _answer_json(name: str, told: PredictorAnswer, top: int) -> dict[str, Any]:
    """Returns an answer as JSON."""
    if told.problem is not None:
        return {"wafer": name, "decision": told.decision.value, "error": told.problem.message}
    return {
        "wafer": name,
        "class": told.name,
        "class_id": told.class_id,
        "probability": told.probability,
        "decision": told.decision.value,
        "novelty": told.novelty,
        "top": [{"class": each[1], "probability": each[2]} for each in told.probabilities[:top]],
    }
