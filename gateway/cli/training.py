"""`teachwafer train`: from a folder of wafers to a published model."""

from __future__ import annotations

import asyncio
import re
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.catalogue.patterns import NONE
from gateway.cli.following import cancelled_with_command, follow_training
from gateway.cli.options import Home, Json, Local, Reach, Session, TrainerAddress
from gateway.cli.output import Output, evaluation_json, show_evaluation
from gateway.cli.wafers import Frozen, TaughtWafers, described, freeze, read_taught
from gateway.values import ModelSize, QuantisedVariant, Task, TrainingOptions, TrainingResult, TrainingRun
from services.common.resource_names import check_id
from services.common.store import open_store

_DEFAULTS = TrainingOptions()


def train(
    wafers: Annotated[
        Path | None, typer.Argument(help="Folder with one folder a class, or a wafer-set .npz.", show_default=False)
    ] = None,
    training_dir: Annotated[
        Path | None,
        typer.Option("--training_dir", "--training-dir", help="The same as an option.", show_default=False),
    ] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="single: one pattern a wafer. several: a wafer may show several patterns; labels and folder names "
            "join them with +, as Center+Scratch. normal: only wafers of the class none (or normal) teach, 20 at "
            "least; others only measure how many are noticed."
        ),
    ] = Task.SINGLE,
    epochs: Annotated[int, typer.Option(min=1, max=1000, help="Passes over the training wafers.")] = _DEFAULTS.epochs,
    batch_size: Annotated[
        int, typer.Option("--batch_size", "--batch-size", min=1, max=4096, help="Wafers a step.")
    ] = _DEFAULTS.batch_size,
    learning_rate: Annotated[
        float, typer.Option("--learning_rate", "--learning-rate", help="Step size, over 0, at most 1.")
    ] = _DEFAULTS.learning_rate,
    model_size: Annotated[ModelSize, typer.Option(help="Size of the pretrained model.")] = _DEFAULTS.model_size,
    backbone: Annotated[str, typer.Option(help="Pretrained model by name. Default: the one of the size.")] = "",
    augmentation: Annotated[
        float, typer.Option(min=0, max=1, help="Strength of rotation, mirroring and noise at teaching.")
    ] = _DEFAULTS.augmentation,
    fine_tune: Annotated[
        bool | None,
        typer.Option(help="Teach the pretrained weights, too. Default: with several patterns.", show_default=False),
    ] = _DEFAULTS.fine_tune,
    early_stopping_epochs: Annotated[
        int,
        typer.Option(
            "--early_stopping_epochs", "--early-stopping-epochs", min=0, help="Epochs without progress; 0 never stops."
        ),
    ] = _DEFAULTS.early_stopping_epochs,
    quantise: Annotated[
        bool,
        typer.Option(
            "--quantise",
            help="Make and publish the quantised variant: smaller, faster on processors, slightly less exact. Refused "
            "when it answers otherwise too often.",
        ),
    ] = _DEFAULTS.quantise,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = _DEFAULTS.seed,
    source: Annotated[str, typer.Option(help="Of a wafer set, only the wafers of this source.")] = "",
    generated: Annotated[
        list[str] | None, typer.Option(help="Id of a data set version that `generate` made; may be repeated.")
    ] = None,
    publish: Annotated[
        str, typer.Option(help="Name of the model in the repository. Default: made of the folder's name.")
    ] = "",
    no_publish: Annotated[bool, typer.Option("--no-publish", help="Do not publish the model.")] = False,
    home: Home = None,
    local: Local = False,
    trainer_address: TrainerAddress = "",
    as_json: Json = False,
) -> None:
    """Teach a model from a folder with one folder a class, or from a wafer set, and publish it.

    With --task a wafer may show several patterns at once, or only normal wafers teach.

    Wafers are held back by lot: some to choose the best epoch, some as a locked test that nothing is chosen by.
    """
    path = wafers or training_dir
    if path is None or (wafers and training_dir):
        raise typer.BadParameter("Expected one folder or wafer set, as an argument or with --training_dir.")
    model_id = "" if no_publish else check_id(publish or model_id_of(path), "--publish")
    options = TrainingOptions(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        model_size=model_size,
        backbone=backbone,
        augmentation=augmentation,
        seed=seed,
        fine_tune=fine_tune,
        early_stopping_epochs=early_stopping_epochs,
        quantise=quantise,
    )
    output = Output(as_json)
    reach = Reach.to(home, local, trainer=trainer_address)
    asyncio.run(_train(output, reach, path, source, task, options, tuple(generated or ()), model_id))


async def _train(
    output: Output,
    reach: Reach,
    path: Path,
    source: str,
    task: Task,
    options: TrainingOptions,
    generated: tuple[str, ...],
    model_id: str,
) -> None:
    """Reads, freezes, teaches, publishes, tells."""
    taught = read_taught(path, source)
    store = open_store(reach.settings().resolved_store_url)
    frozen = freeze(store, taught, hold_back=True, seed=options.seed, task=task)
    show_frozen(output, taught, frozen)
    async with reach.services(output, "trainer") as session:
        ended = await teach(session, output, frozen, options, generated, name=path.name)
        version = await publish_model(session, output, ended, model_id) if model_id else 0
    output.result(training_json(ended, frozen, model_id, version))


async def teach(
    session: Session,
    output: Output,
    frozen: Frozen,
    options: TrainingOptions,
    generated: tuple[str, ...] = (),
    *,
    name: str = "",
) -> TrainingRun:
    """Teaches a model from a data set version, and shows how and how well.

    Args:
        session: The services.
        output: Where to show it.
        frozen: What to teach from.
        options: How.
        generated: Data set versions with generated wafers.
        name: Name of the training for people.

    Raises:
        JobFailedError: The training failed.
    """
    clients = session.clients
    started = await clients.trainer.create(
        frozen.dataset_id,
        options,
        task=frozen.task,
        generated=generated,
        display_name=name,
        request_id=uuid.uuid4().hex,
    )
    what = f"Training {started.run_id}"
    output.say(f"{what} ...")
    embedded = "trainer" in session.embedded
    async with cancelled_with_command(
        output, lambda: clients.trainer.cancel(started.run_id), embedded=embedded, what=what
    ):
        ended = await follow_training(clients, output, started.run_id)
    show_training(output, ended, frozen)
    return ended


async def publish_model(session: Session, output: Output, run: TrainingRun, model_id: str) -> int:
    """Publishes the model of a training, or the quantised variant where one was asked for, and says so.

    Args:
        session: The services.
        output: Where to say it.
        run: The training.
        model_id: Name of the model.

    Returns:
        The version.
    """
    quantised = run.options.quantise
    request_id = f"{'quantised' if quantised else 'publish'}-{run.run_id}"[:64]
    version = await session.clients.trainer.publish(run.run_id, model_id, request_id, quantised=quantised)
    output.say(f"Published as {model_id}:{version}. Ask it with: teachwafer predict --model {model_id} FILES")
    return version


def show_frozen(output: Output, taught: TaughtWafers, frozen: Frozen) -> None:
    """Shows what will be taught."""
    rows = [(name, counts["train"], counts["tune"], counts["test"]) for name, counts in frozen.counts.items()]
    output.table("Wafers", ("class", ">training", ">tuning", ">locked test"), rows)
    for sentence in frozen.warnings:
        output.warn(sentence)
    if taught.unlabelled:
        output.warn(f"{taught.unlabelled} wafers have no class and were left out.")
    if taught.skipped:
        output.warn(f"{len(taught.skipped)} files could not be read:\n{described(taught.skipped)}")


def normal_of(frozen: Frozen) -> str:
    """Returns the id of the class of wafers without a pattern, "" when there is none."""
    return next((each.class_id for each in frozen.classes if each.pattern == NONE), "")


def show_training(output: Output, run: TrainingRun, frozen: Frozen) -> None:
    """Shows how well a model learned and what it cost."""
    result = run.result
    if result is None:
        return
    if result.test is not None:
        show_evaluation(output, "Locked test", result.test, normal_of(frozen))
    elif result.tune is not None:
        show_evaluation(output, "Tuning wafers (there is no locked test)", result.tune, normal_of(frozen))
    epochs = f"best epoch {result.best_epoch} of {result.epochs}   " if result.epochs else ""
    output.say(
        f"{epochs}backbone {result.backbone}   "
        f"{result.training_wafers} training wafers   {result.seconds:.1f} s   "
        f"peak memory {result.peak_memory_bytes / 2**20:,.0f} MiB   model {result.model_bytes / 2**20:.2f} MiB   "
        f"ONNX = Keras within {result.parity_max_difference:.1e} on {result.parity_wafers} wafers"
    )
    if result.quantised is not None:
        _show_quantised(output, result, result.quantised)
    if result.known_patterns:
        known = ", ".join(f"{_name_of(result, each)} as {name}" for each, name in result.known_patterns.items())
        output.say(f"Known before it was taught: {known}")


def _show_quantised(output: Output, result: TrainingResult, variant: QuantisedVariant) -> None:
    """Shows the quantised variant beside the model."""
    sides = (result.test, variant.test) if result.test and variant.test else (result.tune, variant.tune)
    rows: list[tuple[str, ...]] = []
    if sides[0] and sides[1]:
        for name in ("macro_f1", "accuracy", "accepted_share", "accepted_error", "expected_calibration_error"):
            rows.append((name.replace("_", " "), *(f"{getattr(each, name):.3f}" for each in sides)))
    rows.append(("MiB", *(f"{each / 2**20:.2f}" for each in (result.model_bytes, variant.model_bytes))))
    title = "Locked test" if result.test else "Tuning wafers"
    output.table(title, ("", ">model", ">quantised"), rows)
    output.say(f"Both say the same of {variant.same_answers:.1%} of {variant.compared_wafers} wafers held back.")


def _name_of(result: TrainingResult, class_id: str) -> str:
    """Returns the name of a class of a training."""
    scores = result.test or result.tune
    return next((each.name for each in scores.classes if each.class_id == class_id), class_id) if scores else class_id


def training_json(run: TrainingRun, frozen: Frozen, model_id: str, version: int) -> dict[str, Any]:
    """Returns a training as JSON."""
    result = run.result
    told: dict[str, Any] = {
        "job": f"trainingJobs/{run.run_id}",
        "dataset_version": f"datasetVersions/{frozen.dataset_id}",
        "model": model_id,
        "version": version,
        "warnings": list(frozen.warnings),
    }
    if result is not None:
        told |= {
            "test": evaluation_json(result.test),
            "tune": evaluation_json(result.tune),
            "task": frozen.task.value,
            "macro_f1": (result.test or result.tune).macro_f1 if result.test or result.tune else None,  # type: ignore[union-attr]
            "best_epoch": result.best_epoch,
            "epochs": result.epochs,
            "backbone": result.backbone,
            "training_wafers": result.training_wafers,
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
            "model_bytes": result.model_bytes,
            "parity_max_difference": result.parity_max_difference,
            "parity_wafers": result.parity_wafers,
            "quantised": None if result.quantised is None else _quantised_json(result.quantised),
            "known_patterns": {_name_of(result, each): name for each, name in result.known_patterns.items()},
        }
    return told


def _quantised_json(variant: QuantisedVariant) -> dict[str, Any]:
    return {
        "test": evaluation_json(variant.test),
        "tune": evaluation_json(variant.tune),
        "model_bytes": variant.model_bytes,
        "compared_wafers": variant.compared_wafers,
        "same_answers": variant.same_answers,
    }


def model_id_of(path: Path) -> str:
    """Returns the name of a model that is made of the name of a folder or file."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().stem).strip("-._")
    return name[:128] or "wafers"
