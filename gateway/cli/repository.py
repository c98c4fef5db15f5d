"""`teachwafer models` and `teachwafer export`: what is in the model repository."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gateway.cli.options import Home, Json, Model, PredictorAddress, Reach, parse_model
from gateway.cli.output import Output
from gateway.clients import Clients
from gateway.supervisor import serving_addresses
from gateway.values import ModelState
from services.common.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, UnavailableError
from services.common.model_repository import ModelManifest, ModelRepository

app = typer.Typer(no_args_is_help=True, help="List, describe, load and unload published models.")

_FILES = {"onnx": "model.onnx", "keras": "model.keras"}


@app.command("list")
def list_models(home: Home = None, predictor_address: PredictorAddress = "", as_json: Json = False) -> None:
    """List the published models and whether they serve."""
    output, reach = Output(as_json), Reach.to(home, False, predictor=predictor_address)
    repository = _repository(reach)
    states = asyncio.run(_states(reach))
    models: list[dict[str, Any]] = []
    for model_id in repository.models():
        for version in repository.versions(model_id):
            manifest = repository.manifest(model_id, version)
            models.append(
                {
                    "model": model_id,
                    "version": version,
                    "state": states.get((model_id, version), "unloaded" if states else "model server not running"),
                    "classes": [each.display_name for each in manifest.classes],
                    "macro_f1": _scores(manifest).get("macro_f1"),
                    "created_at": manifest.created_at.isoformat(timespec="seconds"),
                }
            )
    rows = [
        (
            each["model"],
            each["version"],
            each["state"],
            len(each["classes"]),
            "" if each["macro_f1"] is None else f"{each['macro_f1']:.3f}",
            each["created_at"],
        )
        for each in models
    ]
    if rows:
        output.table("", ("model", ">version", "state", ">classes", ">macro-F1", "published"), rows)
    else:
        output.say(f"No model in {repository.root} yet. Teach one: teachwafer train --training_dir DIR")
    output.result({"repository": str(repository.root), "models": models})


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="NAME or NAME:VERSION.", show_default=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Describe one version of a model; its files are verified."""
    output, repository = Output(as_json), _repository(Reach(home))
    model_id, version = _existing(repository, model)
    folder = repository.folder(model_id, version)
    manifest = repository.manifest(model_id, version)
    told = json.loads(manifest.to_json())
    output.table(
        f"{model_id}:{version}",
        ("", ""),
        [
            ("classes", ", ".join(each.display_name for each in manifest.classes)),
            ("backbone", f"{manifest.backbone}{', quantised' if manifest.quantised else ''}"),
            ("data set", manifest.dataset_version),
            ("thresholds", f"accept {manifest.accept_threshold:.3f}, temperature {manifest.temperature:.3f}"),
            ("scores", ", ".join(f"{name} {value}" for name, value in _scores(manifest).items() if _is_plain(value))),
            ("published", manifest.created_at.isoformat(timespec="seconds")),
            ("files", ", ".join(sorted(manifest.files))),
            ("folder", folder),
        ],
    )
    output.result(told | {"folder": str(folder)})


@app.command()
def load(
    model: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    home: Home = None,
    predictor_address: PredictorAddress = "",
    as_json: Json = False,
) -> None:
    """Load the newest version of a model into the running model server."""
    reach = Reach.to(home, False, predictor=predictor_address)
    asyncio.run(_change(Output(as_json), reach, model, loaded=True))


@app.command()
def unload(
    model: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    home: Home = None,
    predictor_address: PredictorAddress = "",
    as_json: Json = False,
) -> None:
    """Take a model out of the running model server; its versions stay in the repository."""
    reach = Reach.to(home, False, predictor=predictor_address)
    asyncio.run(_change(Output(as_json), reach, model, loaded=False))


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder to copy to; made when missing.", show_default=False)],
    file_format: Annotated[Literal["onnx", "keras"], typer.Option("--format", help="File to copy.")] = "onnx",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Copy a model out of the repository, verified, with its manifest (classes, thresholds, hashes)."""
    output, repository = Output(as_json), _repository(Reach(home))
    model_id, version = _existing(repository, model)
    folder = repository.folder(model_id, version)
    wanted = _FILES[file_format]
    if wanted not in repository.manifest(model_id, version).files:
        raise NotFoundError(
            "file",
            wanted,
            f"Expected a model with {wanted}. Received: {model_id}:{version} without it. Train it again.",
        )
    names = {wanted: f"{model_id}-{version}{Path(wanted).suffix}", "manifest.json": f"{model_id}-{version}.json"}
    targets = {name: out / target for name, target in names.items()}
    for target in targets.values():
        if target.exists() and not force:
            raise AlreadyExistsError("file", str(target), f"{target} is there already. Use --force to replace it.")
    out.mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(folder / name, partial)
        partial.replace(target)
    output.say("\n".join(f"Written {target}" for target in targets.values()))
    output.result({"model": model_id, "version": version, "files": [str(target) for target in targets.values()]})


async def _states(reach: Reach) -> dict[tuple[str, int], str]:
    """Returns the state of each version in the model server; nothing where none was named or is known to run."""
    settings = reach.settings()
    if "predictor_address" not in settings.model_fields_set and not serving_addresses(settings.home):
        return {}
    clients = _predictor(reach)
    try:
        return {(each.model_id, each.version): each.state.value for each in await clients.predictor.index()}
    except UnavailableError:
        return {}
    finally:
        await clients.close()


async def _change(output: Output, reach: Reach, model: str, *, loaded: bool) -> None:
    """Loads or unloads a model."""
    clients = _predictor(reach)
    try:
        await (clients.predictor.load(model) if loaded else clients.predictor.unload(model))
        versions = [each for each in await clients.predictor.index() if each.model_id == model]
    except UnavailableError as error:
        raise FailedPreconditionError(
            f"Expected a running model server at {clients.addresses['predictor']}. Received: {error.message} "
            "Start one with: teachwafer serve",
            reason="NO_MODEL_SERVER",
        ) from None
    finally:
        await clients.close()
    states = {each.version: each.state.value for each in versions}
    ready = [each.version for each in versions if each.state is ModelState.READY]
    output.say(f"{model}: " + (f"version {max(ready)} serves" if ready else "does not serve"))
    output.result({"model": model, "states": states})


def _predictor(reach: Reach) -> Clients:
    """Returns clients of the model server that runs; none is started for this."""
    settings = reach.settings()
    found = serving_addresses(settings.home)
    update = {key: value for key, value in found.items() if key not in settings.model_fields_set}
    return Clients.open(settings.model_copy(update=update))


def _repository(reach: Reach) -> ModelRepository:
    """Returns the model repository."""
    return ModelRepository(reach.settings().resolved_model_repository)


def _existing(repository: ModelRepository, model: str) -> tuple[str, int]:
    """Returns name and version of a model that is there; the newest version unless one was named.

    Raises:
        NotFoundError: There is none.
    """
    model_id, version = parse_model(model)
    versions = repository.versions(model_id)
    if not versions:
        known = ", ".join(repository.models()) or "none"
        raise NotFoundError("model", model_id, f"Expected a published model ({known}). Received: {model_id!r}.")
    if version and version not in versions:
        known = ", ".join(str(each) for each in versions)
        raise NotFoundError("version", model, f"Expected a version of {model_id} ({known}). Received: {version}.")
    return model_id, version or versions[-1]


def _scores(manifest: ModelManifest) -> Mapping[str, Any]:
    """Returns the scores on the locked test, or on the tune wafers where the data set had no test."""
    scores: Mapping[str, Any] = manifest.scores.get("test") or manifest.scores.get("tune") or {}
    return scores


def _is_plain(value: object) -> bool:
    """Returns whether a score is a number and not a table."""
    return isinstance(value, int | float)
