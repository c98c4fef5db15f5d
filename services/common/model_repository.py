"""The model repository: a folder of published, immutable model versions in the layout that Triton serves.

`<root>/<model>/config.pbtxt`; `<root>/<model>/<version>/` with `model.onnx`, `manifest.json` and other files.
A version is written into a folder beside its place and moved there by one rename: it is there whole or not at all.
"""

import contextlib
import fcntl
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.common.errors import DataLossError, InvalidArgumentError, NotFoundError
from services.common.files import file_sha256, sync, write_file
from services.common.model_manifest import ModelClass, ModelManifest

__all__ = ["ModelClass", "ModelManifest", "ModelRepository", "checked_model_id", "config_pbtxt"]

MANIFEST_FILE = "manifest.json"
"""Name of a version's manifest inside its folder."""
CONFIG_FILE = "config.pbtxt"
"""Name of a model's Triton configuration inside the model's folder."""

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}")
_STATE_FILE = ".published.json"
_LOCK_FILE = ".lock"
_TEMPORARY = ".publishing-"


class ModelRepository:
    """Models and their versions below one folder. Safe to share between threads and processes of one machine.

    Args:
        root: the folder; created when the first version is published.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def models(self) -> list[str]:
        """Return the models that have at least one version, ordered by name."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name
            for path in self.root.iterdir()
            if path.is_dir() and _MODEL_ID.fullmatch(path.name) and self._versions(path)
        )

    def versions(self, model_id: str) -> list[int]:
        """Return the versions of a model in ascending order; empty when there is no such model.

        Raises:
            InvalidArgumentError: `model_id` is no valid name.
        """
        return self._versions(self.root / checked_model_id(model_id))

    def manifest(self, model_id: str, version: int) -> ModelManifest:
        """Return what is known of a version, without looking at its files.

        Raises:
            NotFoundError: there is no such version.
            DataLossError: its manifest is damaged or belongs to another version.
        """
        path = self._version_folder(model_id, version) / MANIFEST_FILE
        manifest = ModelManifest.from_json(path.read_bytes())
        if (manifest.model_id, manifest.version) != (model_id, version):
            raise DataLossError(
                f"Expected the manifest of {model_id} version {version}. "
                f"Received: that of {manifest.model_id} version {manifest.version}. Publish the model again."
            )
        return manifest

    def folder(self, model_id: str, version: int) -> Path:
        """Return the folder of a version after comparing every file in it with the manifest's hash.

        Raises:
            NotFoundError: there is no such version.
            DataLossError: a file is missing or differs from what was published.
        """
        self.verify(model_id, version)
        return self._version_folder(model_id, version)

    def verify(self, model_id: str, version: int) -> None:
        """Compare every file of a version with the manifest's hash.

        Raises:
            NotFoundError: there is no such version.
            DataLossError: a file is missing or differs from what was published.
        """
        folder = self._version_folder(model_id, version)
        for name, expected in self.manifest(model_id, version).files.items():
            path = folder / _checked_file_name(name)
            found = file_sha256(path) if path.is_file() else "no file"
            if found != expected:
                raise DataLossError(
                    f"Expected {name} of {model_id} version {version} with SHA-256 {expected}. Received: {found}. "
                    f"Restore the file or publish the model again.",
                    metadata={"model": model_id, "version": str(version), "file": name},
                )

    def publish(
        self,
        model_id: str,
        files: Mapping[str, Path],
        manifest: ModelManifest,
        config_pbtxt: str,
        request_id: str = "",
    ) -> int:
        """Publish a version and return its number: the highest ever of this model + 1.

        Publishers of one model wait for each other. A publisher that is killed leaves nothing visible.

        Args:
            model_id: name of the model.
            files: local file of each name in the version's folder; copied.
            manifest: what is known of the version. Its `model_id`, `version` and `files` are filled in here.
            config_pbtxt: Triton configuration of the model, see `config_pbtxt`.
            request_id: a request with the same identifier publishes once and gets the same number again.

        Raises:
            InvalidArgumentError: a name is invalid, a file is missing or there is none.
        """
        checked_model_id(model_id)
        _check_files(files)
        folder = self.root / model_id
        with _locked(folder):
            _remove_leftovers(folder)
            state = self._state(folder)
            earlier = state["requests"].get(request_id) if request_id else None
            if earlier is not None and (folder / str(earlier) / MANIFEST_FILE).is_file():
                _write(folder / CONFIG_FILE, config_pbtxt.encode())
                return int(earlier)
            version: int = max([state["highest"], *self._versions(folder)]) + 1
            requests = {**state["requests"], **({request_id: version} if request_id else {})}
            # Before the version itself: a number that was ever given away, even to a publisher that died, is not
            # given away again.
            _write(folder / _STATE_FILE, json.dumps({"highest": version, "requests": requests}).encode())
            self._publish_version(
                folder, version, files, replace(manifest, model_id=model_id, version=version), config_pbtxt
            )
        return version

    def delete(self, model_id: str, version: int) -> None:
        """Remove a version; its number is not used again.

        Raises:
            NotFoundError: there is no such version.
        """
        path = self._version_folder(model_id, version)
        with _locked(path.parent):
            _remove_leftovers(path.parent)
            state = self._state(path.parent)
            highest = max([state["highest"], *self._versions(path.parent)])
            _write(path.parent / _STATE_FILE, json.dumps({**state, "highest": highest}).encode())
            gone = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
            path.rename(gone)
            shutil.rmtree(gone)

    def _publish_version(
        self, folder: Path, version: int, files: Mapping[str, Path], manifest: ModelManifest, config: str
    ) -> None:
        temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        temporary.mkdir()
        hashes = {}
        for name, source in files.items():
            shutil.copyfile(source, temporary / name)
            sync(temporary / name)
            hashes[name] = file_sha256(temporary / name)
        _write(temporary / MANIFEST_FILE, replace(manifest, files=hashes).to_json().encode())
        sync(temporary)
        first = not (folder / CONFIG_FILE).is_file()
        # A version never stands without a configuration; later ones replace it once they are there.
        if first:
            _write(folder / CONFIG_FILE, config.encode())
        temporary.rename(folder / str(version))
        sync(folder)
        if not first:
            _write(folder / CONFIG_FILE, config.encode())

    def _version_folder(self, model_id: str, version: int) -> Path:
        folder = self.root / checked_model_id(model_id) / str(int(version))
        if version < 1 or not (folder / MANIFEST_FILE).is_file():
            raise NotFoundError("model version", f"models/{model_id}/versions/{version}")
        return folder

    def _versions(self, folder: Path) -> list[int]:
        if not folder.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in folder.iterdir()
            if re.fullmatch(r"[1-9][0-9]{0,8}", path.name) and (path / MANIFEST_FILE).is_file()
        )

    def _state(self, folder: Path) -> dict[str, Any]:
        path = folder / _STATE_FILE
        if not path.is_file():
            return {"highest": 0, "requests": {}}
        try:
            state = json.loads(path.read_bytes())
            return {"highest": int(state["highest"]), "requests": dict(state["requests"])}
        except (ValueError, KeyError, TypeError) as error:
            raise DataLossError(
                f"The record of published versions of {folder.name} is damaged ({error!r}). "
                f"Restore {_STATE_FILE} in the model's folder."
            ) from error


def checked_model_id(model_id: str) -> str:
    """Return `model_id` if it is a valid name of a model.

    Raises:
        InvalidArgumentError: it is not 1 to 63 letters, digits, `_`, `.` and `-`, beginning with a letter or digit.
    """
    if not _MODEL_ID.fullmatch(model_id):
        raise InvalidArgumentError(
            "Expected 1 to 63 letters, digits, '_', '.' and '-', beginning with a letter or digit. "
            f"Received: {model_id[:100]!r}.",
            field="model_id",
        )
    return model_id


def config_pbtxt(
    model_id: str,
    classes: int,
    embedding: int,
    heat_rows: int,
    heat_columns: int,
    max_batch_size: int = 1024,
) -> str:
    """Return the Triton configuration of a model with the project's inputs and outputs.

    Args:
        model_id: name of the model.
        classes: number of classes.
        embedding: length of the embedding.
        heat_rows: rows of the heat map of a class.
        heat_columns: columns of the heat map of a class.
        max_batch_size: most wafers in one call.

    Raises:
        InvalidArgumentError: the name is invalid or a number is not positive.
    """
    numbers = {
        "classes": classes,
        "embedding": embedding,
        "heat_rows": heat_rows,
        "heat_columns": heat_columns,
        "max_batch_size": max_batch_size,
    }
    for name, number in numbers.items():
        if number < 1:
            raise InvalidArgumentError(f"Expected a number of at least 1. Received: {number}.", field=name)
    outputs = (
        ("probabilities", f"{classes}"),
        # Triton counts no batch dimension here, and a vector over the batch alone is one of a single value a wafer.
        ("novelty", "1", "reshape: { shape: [ ] }"),
        ("embedding", f"{embedding}"),
        ("heat", f"{classes}, {heat_rows}, {heat_columns}"),
    )
    lines = [
        f'name: "{checked_model_id(model_id)}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size}",
        "input [",
        '  { name: "dies" data_type: TYPE_UINT8 dims: [ -1, -1 ] }',
        "]",
        "output [",
        ",\n".join(
            f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ]{"".join(f" {each}" for each in more)} }}'
            for name, dims, *more in outputs
        ),
        "]",
        "dynamic_batching { }",
    ]
    return "\n".join(lines) + "\n"


def _check_files(files: Mapping[str, Path]) -> None:
    if not files:
        raise InvalidArgumentError("Expected at least one file to publish. Received: none.", field="files")
    for name, path in files.items():
        if _checked_file_name(name) == MANIFEST_FILE:
            raise InvalidArgumentError(
                f"Expected files other than {MANIFEST_FILE}, which is written here.", field="files"
            )
        if not path.is_file():
            raise InvalidArgumentError(
                f"Expected a file to publish as {name!r}. Received: no file there.", field="files"
            )


def _checked_file_name(name: str) -> str:
    if not _FILE_NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"Expected a plain file name of letters, digits, '_', '.' and '-'. Received: {name[:100]!r}.", field="files"
        )
    return name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a model's lock; the kernel frees it when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed publishers left. Only with the lock held: nobody alive has such a folder then."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; what a killed publisher leaves of it is found by its name."""
    write_file(path, data, _TEMPORARY)
