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

from gateway.catalogue.names import name_key
from gateway.catalogue.patterns import NONE, guess_pattern
from gateway.cli.options import Home, Json, Local, Model, PredictorAddress, Reach, Session, parse_model
from gateway.cli.output import Output, evaluation_json, show_evaluation
from gateway.cli.wafers import TaughtWafers, dataset_classes, described, read_asked, read_taught, shown_classes
from gateway.values import (
    ClassScore,
    Decision,
    Evaluation,
    Interval,
    ModelState,
    ModelVersion,
    PredictorAnswer,
    Task,
)
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
    """Tell what the wafers in files show: their class, all their patterns, or whether they are normal."""
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

    Wafers whose class the model was not taught are not scored; it is told how many of them it called unknown. With
    several patterns a label Center+Scratch means both. Of a model that only normal wafers taught, every class but none
    (or normal) counts as something to notice.
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
        task = await make_ready(session, model_id, version)
        answered, answers = await session.clients.predictor.classify(
            model_id, [each for _, each in found], version=version
        )
    rows = [
        (
            name,
            _word(task, told),
            f"{told.probability:.3f}",
            told.decision.value.replace("_", " "),
            _others(task, told, top),
        )
        for (name, _), told in zip(found, answers, strict=True)
    ]
    shown = {Task.SINGLE: "class", Task.SEVERAL: "patterns", Task.NORMAL: "answer"}[task]
    columns = ("wafer", shown, ">probability", "decision", "probabilities" if task is Task.SEVERAL else "then")
    output.table(f"{model_id}:{answered}", columns, rows[:_SHOWN])
    if len(rows) > _SHOWN:
        output.say(f"... and {len(rows) - _SHOWN} more; --json lists all.")
    counted = Counter(_word(task, told) or "failed" for told in answers)
    output.say(f"{len(answers)} wafers: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))
    output.result(
        {
            "model": model_id,
            "version": answered,
            "task": task.value,
            "answers": [_answer_json(task, name, told, top) for (name, _), told in zip(found, answers, strict=True)],
            "skipped": [{"name": each.name, "reason": each.reason} for each in skipped],
        }
    )


async def _evaluate(output: Output, reach: Reach, path: Path, source: str, model_id: str, version: int) -> None:
    """Reads, asks, measures, tells."""
    taught = read_taught(path, source)
    async with reach.services(output, "predictor") as session:
        task = await make_ready(session, model_id, version)
        told = await ask(session, taught, model_id, version)
    evaluation, extra = measure(taught, told[1], task)
    normal_id = next((each.class_id for each in evaluation.classes if guess_pattern(each.name) == NONE), "")
    show_evaluation(output, f"{model_id}:{told[0]} on {path.name}", evaluation, normal_id)
    for name, facts in extra["not_taught"].items():
        output.warn(
            f"{facts['wafers']} wafers of {name!r}, which the model was not taught; called unknown: {facts['unknown']}"
        )
    output.result({"model": model_id, "version": told[0], **(evaluation_json(evaluation) or {}), **extra})


async def make_ready(session: Session, model_id: str, version: int = 0) -> Task:
    """Loads a model unless it serves.

    Args:
        session: The services.
        model_id: Name of the model.
        version: Version that will be asked; 0 means the newest that is loaded.

    Returns:
        What the model tells.

    Raises:
        NotFoundError: There is no such model.
    """

    async def loaded() -> list[ModelVersion]:
        found = await session.clients.predictor.loaded()
        mine = [each for each in found if each.model_id == model_id and each.state is ModelState.READY]
        return sorted(mine, key=lambda each: each.version)

    serving = await loaded()
    if not serving:
        await session.clients.predictor.load(model_id)
        serving = await loaded()
    asked = [each for each in serving if version in (0, each.version)]
    return asked[-1].task if asked else Task.SINGLE


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


def measure(
    taught: TaughtWafers, answers: list[PredictorAnswer], task: Task = Task.SINGLE
) -> tuple[Evaluation, dict[str, Any]]:
    """Returns the scores of answers.

    Args:
        taught: Wafers with their classes.
        answers: What a model said of each.
        task: What the model tells.

    Returns:
        Scores over the wafers of taught classes that were answered; and beside them `failed`, the wafers that could not
        be classified, and `not_taught`, what became of the wafers of other classes.

    Raises:
        InvalidArgumentError: No wafer has a class that the model was taught.
    """
    answered = next((each for each in answers if each.probabilities), None)
    classes = sorted((each[0], each[1]) for each in answered.probabilities) if answered else []
    if task is Task.NORMAL:
        return _measure_normal(taught, answers)
    shown = shown_classes(taught.labels, task)
    index_of_label = _indexes_of_labels({name for names in shown for name in names}, classes)
    kept: list[tuple[PredictorAnswer, list[int], str]] = []
    others: dict[str, Counter[str]] = {}
    failed = 0
    for names, lot, told in zip(shown, taught.lots, answers, strict=True):
        foreign = next((name for name in names if name not in index_of_label), None)
        # Where each pattern is asked for by itself, a wafer without any needs no class of its own in the model.
        clean = task is Task.SEVERAL and foreign is not None and guess_pattern(foreign) == NONE
        if told.decision is Decision.FAILED:
            failed += 1
        elif foreign is not None and not clean:
            others.setdefault(foreign, Counter())[told.decision.value] += 1
        else:
            kept.append((told, [] if clean else [index_of_label[name] for name in names], lot))
    if not kept:
        known = ", ".join(name for _, name in classes)
        raise InvalidArgumentError(f"Expected wafers of a class that the model was taught ({known}). Received: none.")
    not_taught = {
        label: {"wafers": counted.total(), "unknown": counted[Decision.UNKNOWN.value]}
        for label, counted in sorted(others.items())
    }
    return _named(_scored(kept, classes, task), classes), {"failed": failed, "not_taught": not_taught}


def _scored(
    kept: list[tuple[PredictorAnswer, list[int], str]], classes: list[tuple[str, str]], task: Task
) -> scores.Evaluation:
    """Returns the scores of answers on wafers whose classes, by index, and lots are known."""
    index_of = {class_id: index for index, (class_id, _) in enumerate(classes)}
    probabilities = np.zeros((len(kept), len(classes)), np.float32)
    for row, (told, _, _) in zip(probabilities, kept, strict=True):
        for class_id, _, probability in told.probabilities:
            row[index_of[class_id]] = probability
    lots = [lot for _, _, lot in kept]
    accepted = np.array([told.decision is Decision.ACCEPTED for told, _, _ in kept], np.bool_)
    if task is Task.SINGLE:
        labels = np.array([own[0] for _, own, _ in kept], np.int64)
        return scores.evaluate(probabilities, labels, lots, accepted)
    shown = np.zeros(probabilities.shape, np.bool_)
    for row_shown, (_, own, _) in zip(shown, kept, strict=True):
        row_shown[own] = True
    normal = [guess_pattern(name) == NONE for _, name in classes]
    return scores.evaluate_several(probabilities, shown, normal, lots, accepted)


def _measure_normal(taught: TaughtWafers, answers: list[PredictorAnswer]) -> tuple[Evaluation, dict[str, Any]]:
    """Returns how many normal wafers pass and how many others are noticed, for each label; raises as `measure`."""
    kept = [
        (label, lot, told)
        for label, lot, told in zip(taught.labels, taught.lots, answers, strict=True)
        if told.decision is not Decision.FAILED
    ]
    if not kept:
        raise InvalidArgumentError("Expected at least one wafer that can be classified. Received: none.")
    found = dataset_classes(label for label, _, _ in kept)
    index_of = {each.display_name: index for index, each in enumerate(found)}
    scored = scores.evaluate_normal(
        np.array([told.novelty for _, _, told in kept], np.float32),
        np.array([index_of[label] for label, _, _ in kept], np.int64),
        [each.normal for each in found],
        [lot for _, lot, _ in kept],
    )
    classes = [(each.class_id, each.display_name) for each in found]
    return _named(scored, classes), {"failed": len(answers) - len(kept), "not_taught": {}}


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
        task=scored.task,
        auroc=scored.auroc,
    )


def _word(task: Task, told: PredictorAnswer) -> str:
    """Returns what a wafer shows in one word, as labels say it; "" when it could not be classified."""
    if task is Task.SINGLE or told.decision is Decision.FAILED:
        return told.name
    if task is Task.NORMAL:
        return "normal" if told.decision is Decision.ACCEPTED else "unlike the normal wafers"
    return "+".join(name for _, name, _ in told.patterns) or NONE


def _others(task: Task, told: PredictorAnswer, top: int) -> str:
    """Returns the classes after the first, or where each stands for itself the first ones, in one cell."""
    if told.problem is not None:
        return told.problem.message
    listed = told.probabilities[:top] if task is Task.SEVERAL else told.probabilities[1:top]
    return ", ".join(f"{name} {probability:.3f}" for _, name, probability in listed)


def _answer_json(task: Task, name: str, told: PredictorAnswer, top: int) -> dict[str, Any]:
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
        "answer": _word(task, told),
        "patterns": [{"class": each[1], "class_id": each[0], "probability": each[2]} for each in told.patterns],
        "top": [{"class": each[1], "probability": each[2]} for each in told.probabilities[:top]],
    }
