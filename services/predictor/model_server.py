"""The models in service: loading, swapping and unloading them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.errors import DataLossError, NotFoundError, TeachwaferError, UnavailableError
from services.common.model_repository import ModelRepository, checked_model_id
from services.predictor.session import ModelSession
from services.predictor.statistics import ModelStatistics

logger = logging.getLogger(__name__)


class ModelState(StrEnum):
    """State of a version in the index."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version in service.

    Attributes:
        name: Name of the model.
        version: Its version.
        session: What runs it.
        statistics: What it has done.
    """

    name: str
    version: int
    session: ModelSession
    statistics: ModelStatistics = field(default_factory=ModelStatistics)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version in the model repository.

    Attributes:
        name: Name of the model.
        version: Version.
        state: Whether it serves.
        reason: Why not, where it does not.
    """

    name: str
    version: int
    state: ModelState
    reason: str = ""


class ModelServer:
    """Holds the loaded version of each model. Loading blocks and belongs in a thread; everything else is quick.

    Args:
        repository: Where the models are published.
    """

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository
        self._loaded: dict[str, LoadedModel] = {}
        self._rejected: dict[tuple[str, int], str] = {}
        self._loading: set[tuple[str, int]] = set()
        self._one_at_a_time = threading.Lock()
        self.ready = False

    @property
    def repository(self) -> ModelRepository:
        """Where the models are published."""
        return self._repository

    def load_all(self) -> None:
        """Loads the newest version of each model that can be served; what cannot is logged and kept in the index."""
        for name in self._repository.models():
            for version in reversed(self._repository.versions(name)):
                try:
                    self._load(name, version)
                    break
                except TeachwaferError as error:
                    logger.error(  # noqa: TRY400 - the message says it all, a trace adds nothing
                        "could not load a model",
                        extra={"model": name, "version": version, "error": error.message, "reason": error.reason},
                    )
        self.ready = True

    def load(self, name: str) -> LoadedModel:
        """Loads the newest version of a model beside the one in service and then takes its place.

        Args:
            name: Name of the model.

        Raises:
            NotFoundError: There is no such model.
            DataLossError: The version is damaged; the one in service stays, and the index says why.
        """
        versions = self._repository.versions(checked_model_id(name))
        if not versions:
            raise NotFoundError("model", name)
        return self._load(name, versions[-1])

    def unload(self, name: str) -> None:
        """Takes a model out of service. Running calls end with it.

        Args:
            name: Name of the model.

        Raises:
            NotFoundError: There is no such model.
        """
        with self._one_at_a_time:
            if self._loaded.pop(name, None) is None and not self._repository.versions(checked_model_id(name)):
                raise NotFoundError("model", name)
        logger.info("unloaded a model", extra={"model": name})

    def get(self, name: str, version: int = 0) -> LoadedModel:
        """Returns a loaded model.

        Args:
            name: Name of the model.
            version: Version; 0 takes the one that serves.

        Raises:
            NotFoundError: No such model or version is loaded.
            UnavailableError: The models are still being loaded.
        """
        model = self._loaded.get(name)
        if model is not None and version in (0, model.version):
            return model
        if not self.ready:
            raise UnavailableError("The models are still being loaded. Try again soon.", 1.0, reason="LOADING")
        wanted = f"{name} version {version}" if version else name
        loaded = ", ".join(f"{each.name} version {each.version}" for each in self.loaded()[:20]) or "none"
        raise NotFoundError(
            "model",
            wanted,
            f"Expected a loaded model ({loaded}). Received: {wanted[:200]!r}. Load it, or name another.",
        )

    def loaded(self) -> list[LoadedModel]:
        """Returns the versions in service, by name."""
        return sorted(self._loaded.values(), key=lambda each: each.name)

    def index(self) -> list[IndexEntry]:
        """Returns every version in the repository and in service, by name, newest first."""
        loaded = {(each.name, each.version) for each in self._loaded.values()}
        published = {
            (name, version) for name in self._repository.models() for version in self._repository.versions(name)
        }
        entries = []
        for name, version in sorted(loaded | published, key=lambda each: (each[0], -each[1])):
            if (name, version) in loaded:
                entries.append(IndexEntry(name, version, ModelState.READY))
            elif (name, version) in self._loading:
                entries.append(IndexEntry(name, version, ModelState.LOADING))
            else:
                reason = self._rejected.get((name, version), "unloaded")
                entries.append(IndexEntry(name, version, ModelState.UNAVAILABLE, reason))
        return entries

    def _load(self, name: str, version: int) -> LoadedModel:
        key = (name, version)
        with self._one_at_a_time:
            self._loading.add(key)
            try:
                model = LoadedModel(name, version, _session(self._repository, name, version))
            except TeachwaferError as error:
                self._rejected[key] = error.message
                raise
            finally:
                self._loading.discard(key)
            self._rejected.pop(key, None)
            # One assignment: a call sees the old version or the new one, and one that runs keeps what it has.
            self._loaded[name] = model
        logger.info("loaded a model", extra={"model": name, "version": version, "provider": model.session.provider})
        return model


def _session(repository: ModelRepository, name: str, version: int) -> ModelSession:
    """Loads a version; whatever is wrong with it ends in one of our errors, so that it harms no other model."""
    try:
        return ModelSession.load(repository, name, version)
    except TeachwaferError:
        raise
    except Exception as error:
        raise DataLossError(
            f"Expected a version that can be read and run. Received from {name} version {version}: "
            f"{type(error).__name__}: {str(error)[:500]}. Restore its files or publish the model again."
        ) from error
