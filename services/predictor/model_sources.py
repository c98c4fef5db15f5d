"""What can be served: the versions in the model repository, those of wafers and any other graph in the same layout."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidArgumentError, NotFoundError
from services.common.model_repository import CONFIG_FILE, MANIFEST_FILE, ModelRepository, checked_model_id
from services.predictor.config_converters import WrittenConfig, read_config
from services.predictor.session import ModelSession

FILE_PREFIX = "file:"
"""Begins the name of a parameter that brings a file of a model."""

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        name: Its name.
        folder: Its folder.
        versions: Its versions, ascending.
        override: JSON form of a configuration that takes the place of its own, or empty.
        repository: Where the folder is; None where callers sent the files.
    """

    name: str
    folder: Path
    versions: tuple[int, ...]
    override: str = ""
    repository: ModelRepository | None = None

    def config(self) -> WrittenConfig:
        """Returns how it is to be served.

        Raises:
            InvalidArgumentError: Its configuration is wrong.
        """
        return read_config(self.name, self.folder, self.override)

    def open(self, version: int, config: WrittenConfig) -> ModelSession:
        """Loads a version.

        Raises:
            DataLossError: Its files are damaged or wrong.
            InvalidArgumentError: Its configuration contradicts its graph.
            NotFoundError: There is no such version.
        """
        folder = self.folder / str(version)
        if self.repository is not None and (folder / MANIFEST_FILE).is_file():
            # Compares every file with its hash before one is read.
            folder = self.repository.folder(self.name, version)
            return ModelSession(self.name, folder, config, self.repository.manifest(self.name, version))
        if not (folder / config.model_file).is_file():
            raise NotFoundError(
                "model version",
                f"{self.name}/{version}",
                f"Expected the file {config.model_file} in version {version} of {self.name}. Received: none there. "
                "Add it, or name another in default_model_filename.",
            )
        return ModelSession(self.name, folder, config)

    def stamp(self, version: int) -> Stamp:
        """Returns what changes when the files of a version or its configuration change."""
        if self.repository is None:
            return ()
        beside = [path for path in self.folder.glob("[!.]*") if path.is_file() and path.name != CONFIG_FILE]
        files = sorted([*beside, *(self.folder / str(version)).glob("*")])
        # Publishing writes the configuration anew each time: its content counts, not its time.
        try:
            config = (self.folder / CONFIG_FILE).read_bytes()
        except OSError:
            config = b""
        told = ("config", hash(config), hash(self.override))
        return (told, *(each for each in map(_stamp, files) if each))


class ModelSources:
    """The models of a repository.

    Args:
        repository: Where they lie.
    """

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository

    def names(self) -> list[str]:
        """Returns the models that have at least one version, by name."""
        root = self.repository.root
        if not root.is_dir():
            return []
        return sorted(path.name for path in root.iterdir() if path.is_dir() and self._versions(path))

    def is_ensemble(self, name: str) -> bool:
        """Returns whether the configuration of a model speaks of the steps of an ensemble."""
        return _speaks_of_steps(self.repository.root / name)

    def source(self, name: str, override: str = "") -> ModelSource:
        """Returns a model.

        Args:
            name: Its name.
            override: JSON form of a configuration that takes the place of its own, or empty.

        Raises:
            InvalidArgumentError: It is no name of a model.
            NotFoundError: There is no such model.
        """
        folder = self.repository.root / checked_model_id(name)
        versions = self._versions(folder)
        if not versions:
            raise NotFoundError("model", name)
        return ModelSource(name, folder, tuple(versions), override, self.repository)

    def versions(self, name: str) -> list[int]:
        """Returns the versions of a model, ascending; none where there is no such model."""
        return self._versions(self.repository.root / checked_model_id(name))

    def _versions(self, folder: Path) -> list[int]:
        if not folder.is_dir() or folder.name.startswith("."):
            return []
        return sorted(
            int(path.name)
            for path in folder.iterdir()
            # A version of an ensemble has no file; any other folder without one is none.
            if _VERSION.fullmatch(path.name) and path.is_dir() and (any(path.iterdir()) or _speaks_of_steps(folder))
        )


@contextmanager
def sent_source(name: str, override: str, files: Mapping[str, bytes]) -> Iterator[ModelSource]:
    """Yields a model whose files a caller sent; they are kept until it is loaded.

    Args:
        name: Name of the model.
        override: JSON form of its configuration.
        files: Contents by path below the folder of the model, as "1/model.onnx".

    Raises:
        InvalidArgumentError: A path leads elsewhere, no version is among them or the configuration is missing.
    """
    checked_model_id(name)
    if not override:
        raise InvalidArgumentError(
            "Expected the parameter config beside files, because they take the place of the whole model. Received: "
            f"{sorted(files)[:5]} without it.",
            "parameters.config",
        )
    versions = set()
    for path in files:
        parts = path.split("/")
        if len(parts) > 2 or not all(_FILE_NAME.fullmatch(part) for part in parts):
            raise InvalidArgumentError(
                f"Expected a file as {FILE_PREFIX}<version>/<file> or {FILE_PREFIX}<file>. Received: {path[:100]!r}.",
                "parameters",
            )
        if len(parts) == 2 and _VERSION.fullmatch(parts[0]):
            versions.add(int(parts[0]))
    if not versions:
        raise InvalidArgumentError(
            f"Expected a file of a version, as {FILE_PREFIX}1/model.onnx. Received: {sorted(files)[:5]}.", "parameters"
        )
    with tempfile.TemporaryDirectory(prefix="teachwafer-model-") as temporary:
        folder = Path(temporary) / name
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield ModelSource(name, folder, tuple(sorted(versions)), override)


def _speaks_of_steps(folder: Path) -> bool:
    try:
        return b"ensemble_scheduling" in (folder / CONFIG_FILE).read_bytes()
    except OSError:
        return False


def _stamp(path: Path) -> tuple[str, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return path.name, facts.st_mtime_ns, facts.st_size
