"""The models in service: loading, swapping and unloading them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.common.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TeachwaferError,
    UnavailableError,
)
from services.common.model_repository import ModelRepository, checked_model_id
from services.predictor.canary import Outcome, Trial, Verdict
from services.predictor.config_converters import WrittenConfig, config_to_json
from services.predictor.config_fields import wrong
from services.predictor.cores import usable_cores
from services.predictor.ensemble import Ensemble
from services.predictor.model_config import CanaryRules, ModelControl, VersionPolicy
from services.predictor.model_sources import ModelSource, ModelSources, Stamp, sent_source
from services.predictor.session import ModelSession
from services.predictor.statistics import ModelStatistics

logger = logging.getLogger(__name__)

_serial = itertools.count(1)


class ModelState(StrEnum):
    """State of a version in the index."""

    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """A version in service.

    Attributes:
        name: Name of the model.
        version: Its version.
        session: What runs it.
        statistics: What it has done.
        stamp: What its files were when it was loaded.
        serial: Another number each time that something is loaded.
    """

    name: str
    version: int
    session: ModelSession | Ensemble
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    stamp: Stamp = ()
    serial: int = field(default_factory=lambda: next(_serial))

    @property
    def graph(self) -> ModelSession:
        """What runs it; only what has a graph comes into a queue."""
        if isinstance(self.session, Ensemble):
            raise TypeError(f"expected a model with a graph, received the ensemble {self.name}")
        return self.session

    @property
    def fault(self) -> str:
        """Why it cannot be run although it is loaded, which happens to ensembles; empty where it can."""
        return self.session.fault if isinstance(self.session, Ensemble) else ""


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


@dataclass(frozen=True, slots=True)
class ServedVersions:
    """What a server serves of a model, so that another one can serve the same.

    Attributes:
        name: Name of the model.
        versions: Versions in service, newest first.
        config: JSON form of its configuration, as written.
        files: Files that a caller sent, contents by path below its folder; none where they lie in the repository.
        trial: Version that serves and version that proves itself beside it; None where none does.
        kept: Versions that stay once that one has proved itself.
    """

    name: str
    versions: tuple[int, ...]
    config: str
    files: Mapping[str, bytes]
    trial: tuple[int, int] | None
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """What was in service at one moment, to go back to."""

    loaded: dict[str, dict[int, LoadedModel]]
    kept: dict[str, dict[int, LoadedModel]]
    trials: dict[str, Trial]
    configs: dict[str, WrittenConfig]
    files: dict[str, Mapping[str, bytes]]


class ModelServer:
    """Holds the loaded versions of each model. Loading blocks and belongs in a thread; everything else is quick.

    Args:
        repository: Where the models are published.
        control: Who decides what is loaded after the start.
        threads: Runs of models at a time. Default: one a core.
        canary: How new versions of models prove themselves whose configuration says nothing. Default: not at all.
        keeps_files: Whether files that callers send are kept in memory, for a server that takes over from this one.

    Attributes:
        ready: Whether everything was loaded that there was at the start.
        trials: Running trials of new versions, by model.
        outcomes: Trials that have ended, by model and outcome.
        judge: Gets the verdict on a trial, once, and sees to it that `end_trial` is called. None: it ends at once.
    """

    def __init__(
        self,
        repository: ModelRepository,
        control: ModelControl = ModelControl.EXPLICIT,
        threads: int | None = None,
        canary: CanaryRules = CanaryRules(),  # noqa: B008 - it is frozen
        *,
        keeps_files: bool = False,
    ) -> None:
        self._sources = ModelSources(repository)
        self._control = control
        self._threads = threads or usable_cores()
        self._loaded: dict[str, dict[int, LoadedModel]] = {}
        self._rejected: dict[tuple[str, int], str] = {}
        self._loading: set[tuple[str, int]] = set()
        self._polled: dict[str, object] = {}
        self._one_at_a_time = threading.Lock()
        self._canary = canary
        self._kept: dict[str, dict[int, LoadedModel]] = {}
        self._configs: dict[str, WrittenConfig] = {}
        self._keeps_files = keeps_files
        self._files: dict[str, Mapping[str, bytes]] = {}
        self.ready = False
        self.trials: dict[str, Trial] = {}
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.judge: Callable[[str, Trial, Verdict], None] | None = None

    @property
    def repository(self) -> ModelRepository:
        """Where the models are published."""
        return self._sources.repository

    def load_all(self) -> None:
        """Loads the versions of each model that its policy names; what cannot be loaded is logged and in the index.

        In the place of a newest version that cannot be served comes the one before it.
        """
        for name in self._ensembles_last(self._sources.names()):
            self._load_what_can_be(name)
        self.ready = True

    def poll(self) -> None:
        """Loads what has changed in the repository since the last look, and unloads what has gone from it."""
        names = self._ensembles_last(self._sources.names())
        changed = False
        for name in names:
            source = self._sources.source(name)
            seen = tuple((version, source.stamp(version)) for version in source.versions)
            # What an ensemble lacked may have come.
            waits = changed and name not in self._loaded and self._sources.is_ensemble(name)
            if waits or self._polled.get(name) != seen:
                self._polled[name] = seen
                self._load_what_can_be(name)
                changed = True
        for name in set(self._loaded) - set(names):
            with self._one_at_a_time:
                self._loaded.pop(name, None)
                self.trials.pop(name, None)
            logger.info("unloaded a model that is gone from the repository", extra={"model": name})

    def load(self, name: str, override: str = "", files: Mapping[str, bytes] | None = None) -> LoadedModel:
        """Loads the versions that a model's policy names beside those in service, and then takes their place.

        The models that the steps of an ensemble run are loaded before it, where they are not in service.

        Args:
            name: Name of the model.
            override: JSON form of a configuration that takes the place of the model's own, or empty.
            files: Files that take the place of the model's own, contents by path below its folder.

        Returns:
            The newest version.

        Raises:
            NotFoundError: There is no such model.
            DataLossError: A version is damaged; those in service stay, and the index says why.
            InvalidArgumentError: The configuration is wrong; those in service stay.
            FailedPreconditionError: Callers do not decide what this server loads, or a model of an ensemble cannot be
                loaded.
        """
        self._check_control()
        if files:
            with sent_source(name, override, files) as source:
                loaded = self._load(source)
            if self._keeps_files:
                self._files[name] = files
            return loaded
        return self._load(self._sources.source(name, override))

    def unload(self, name: str, *, dependents: bool = False) -> None:
        """Takes a model out of service. Running calls end with it.

        Args:
            name: Name of the model.
            dependents: Whether the models of an ensemble go with it, but for those that another ensemble runs.

        Raises:
            NotFoundError: There is no such model.
            FailedPreconditionError: Callers do not decide what this server loads.
        """
        self._check_control()
        with self._one_at_a_time:
            if name not in self._loaded and not self._sources.versions(checked_model_id(name)):
                raise NotFoundError("model", name)
            going = [name]
            while going:
                gone = going.pop()
                versions = self._loaded.pop(gone, {})
                self.trials.pop(gone, None)
                self._files.pop(gone, None)
                logger.info("unloaded a model", extra={"model": gone})
                if dependents:
                    needed = {each for model in self.loaded() for each in _members(model)}
                    going += {each for model in versions.values() for each in _members(model)} - needed

    def get(self, name: str, version: int = 0) -> LoadedModel:
        """Returns a loaded model.

        Args:
            name: Name of the model.
            version: Version; 0 takes the newest that serves, or one of two while the newest proves itself.

        Raises:
            NotFoundError: No such model or version is loaded.
            UnavailableError: The models are still being loaded.
        """
        versions = self._loaded.get(name)
        if versions:
            trial = None if version else self.trials.get(name)
            model = (
                versions.get(version or next(iter(versions)))
                if trial is None
                else self._on_trial(name, trial, versions)
            )
            if model is not None:
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
        """Returns the versions in service, by name, newest first."""
        return [model for _, versions in sorted(self._loaded.items()) for model in versions.values()]

    def index(self) -> list[IndexEntry]:
        """Returns every version in the repository and in service, by name, newest first."""
        loaded = {(each.name, each.version): each.fault for each in self.loaded()}
        published = {(name, version) for name in self._sources.names() for version in self._sources.versions(name)}
        entries = []
        for name, version in sorted(loaded.keys() | published, key=lambda each: (each[0], -each[1])):
            if fault := loaded.get((name, version)):
                entries.append(IndexEntry(name, version, ModelState.UNAVAILABLE, fault))
            elif (name, version) in loaded:
                entries.append(IndexEntry(name, version, ModelState.READY))
            elif (name, version) in self._loading:
                entries.append(IndexEntry(name, version, ModelState.LOADING))
            else:
                reason = self._rejected.get((name, version), "unloaded")
                entries.append(IndexEntry(name, version, ModelState.UNAVAILABLE, reason))
        return entries

    def end_trial(self, name: str, candidate: int, verdict: Verdict) -> None:
        """Ends the trial of a version as somebody else has judged; one that has ended already stays as it is.

        Args:
            name: Name of the model.
            candidate: The version on trial.
            verdict: How it ends.
        """
        with self._one_at_a_time:
            self._end(name, candidate, verdict)

    def moment(self) -> Moment:
        """Returns what is in service now, for `go_back`."""
        with self._one_at_a_time:
            return Moment(
                dict(self._loaded), dict(self._kept), dict(self.trials), dict(self._configs), dict(self._files)
            )

    def go_back(self, moment: Moment, reason: str) -> None:
        """Puts back into service what was there at a moment, loaded as it was.

        Args:
            moment: The moment.
            reason: Why; the index says it of versions that leave.
        """
        with self._one_at_a_time:
            leaving = {(name, version) for name, versions in self._loaded.items() for version in versions}
            leaving -= {(name, version) for name, versions in moment.loaded.items() for version in versions}
            self._loaded, self._kept, self.trials = moment.loaded, moment.kept, moment.trials
            self._configs, self._files = moment.configs, moment.files
            self._rejected.update(dict.fromkeys(leaving, reason))
        logger.warning("went back to the models before", extra={"reason": reason})

    def served(self) -> list[ServedVersions]:
        """Returns what is in service, for `take_over`; ensembles that lack a model are left out."""
        with self._one_at_a_time:
            found = []
            for name, versions in self._loaded.items():
                trial = self.trials.get(name)
                found.append(
                    ServedVersions(
                        name,
                        tuple(version for version, each in versions.items() if not each.fault),
                        config_to_json(self._configs[name]),
                        self._files.get(name, {}),
                        (trial.stable.version, trial.candidate.version) if trial else None,
                        tuple(self._kept[name]),
                    )
                )
        return [each for each in found if each.versions]

    def rejected(self) -> dict[tuple[str, int], str]:
        """Returns why versions do not serve, by model and version, where it is known."""
        return dict(self._rejected)

    def take_over(self, served: Iterable[ServedVersions], rejected: Mapping[tuple[str, int], str]) -> None:
        """Loads what another server serves: the same versions, configured and on trial as they are there.

        Args:
            served: What it serves.
            rejected: Why other versions do not serve, by model and version.

        Raises:
            DataLossError: A version is damaged by now.
            NotFoundError: A version is gone by now.
        """
        missing = {each.name: each for each in served}
        while missing:
            self._take_over(next(iter(missing)), missing)
        self._rejected.update(rejected)
        self.ready = True

    def _take_over(self, name: str, missing: dict[str, ServedVersions]) -> None:
        """Loads what another server serves of a model, and the models that an ensemble runs before it."""
        served = missing.pop(name)
        with contextlib.ExitStack() as stack:
            if served.files:
                source = stack.enter_context(sent_source(name, served.config, served.files))
            else:
                source = self._sources.source(name)
                # A configuration that the repository has is none that a caller sent: loaded anew, nothing changes.
                with contextlib.suppress(InvalidArgumentError):
                    if config_to_json(source.config()) == served.config:
                        served = replace(served, config="")
                source = replace(source, override=served.config)
            config = source.config()
            for member in config.members:
                if member in missing:
                    self._take_over(member, missing)
            with self._one_at_a_time:
                loaded = {version: self._opened(source, version, config) for version in served.versions}
                self._loaded[name], self._configs[name], self._files[name] = loaded, config, served.files
                self._kept[name] = {version: loaded[version] for version in served.kept if version in loaded}
                if served.trial and loaded.keys() >= set(served.trial):
                    stable, candidate = (loaded[version] for version in served.trial)
                    self.trials[name] = Trial(stable, candidate, self._rules(config))

    def _check_control(self) -> None:
        if self._control is not ModelControl.EXPLICIT:
            raise FailedPreconditionError(
                f"Expected no call to load or unload, because TEACHWAFER_PREDICTOR_MODEL_CONTROL is {self._control}. "
                "Change the files of the repository, or set it to explicit.",
                reason="MODEL_CONTROL",
            )

    def _load_what_can_be(self, name: str) -> None:
        """Loads the versions of a model; where it cannot, the one before takes the place of the newest."""
        try:
            source = self._sources.source(name)
            config = source.config()
            self._load_members(name, config)
        except TeachwaferError as error:
            for version in self._sources.versions(name):
                self._rejected[name, version] = error.message
            _tell(name, 0, error)
            return
        with self._one_at_a_time:
            fresh: dict[int, LoadedModel] = {}
            policy = config.version_policy
            # At the start, the version before the newest is what that one proves itself against.
            more = bool(policy.latest and self._rules(config).percent and name not in self._loaded)
            for version in reversed(source.versions):
                if policy.latest and len(fresh) == policy.latest + more:
                    break
                if policy.specific and version not in policy.specific:
                    continue
                try:
                    fresh[version] = self._opened(source, version, config)
                except TeachwaferError as error:
                    _tell(name, version, error)
            if fresh:
                kept = dict(list(fresh.items())[: policy.latest or None])
                self._serve(name, kept, list(fresh.values())[-1] if len(fresh) > len(kept) else None, config)

    def _load(self, source: ModelSource) -> LoadedModel:
        try:
            config = source.config()
            self._load_members(source.name, config)
        except TeachwaferError as error:
            self._rejected[source.name, source.versions[-1]] = error.message
            raise
        versions = _chosen(config.version_policy, source)
        with self._one_at_a_time:
            # One assignment: a call sees the old versions or the new ones, and one that runs keeps what it has.
            fresh = {version: self._opened(source, version, config) for version in versions}
            self._serve(source.name, fresh, None, config)
        return fresh[versions[0]]

    def _load_members(self, name: str, config: WrittenConfig, above: tuple[str, ...] = ()) -> None:
        """Loads the models that an ensemble runs and that are not in service.

        Args:
            name: Name of the ensemble.
            config: Its configuration; one without steps needs nothing.
            above: Ensembles that this one is a step of.
        """
        path = (*above, name)
        for member in config.members:
            if member in path:
                raise wrong(name, "steps that do not lead back to it", " -> ".join([*path, member]))
            serving = next(iter(self._loaded.get(member, {}).values()), None)
            if serving is not None:
                if isinstance(serving.session, Ensemble):
                    self._load_members(member, serving.session.written, path)
                continue
            try:
                source = self._sources.source(member)
                self._load_members(member, source.config(), path)
                self._load(source)
            except TeachwaferError as error:
                raise FailedPreconditionError(
                    f"Expected the model {member}, which a step of the ensemble {name} runs, to be one that can be "
                    f"loaded. Received: {error.message}",
                    subject=member,
                    reason="NO_ENSEMBLE_MEMBER",
                ) from error

    def _ensembles_last(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._sources.is_ensemble)

    def _rules(self, config: WrittenConfig) -> CanaryRules:
        return replace(self._canary, **config.canary)

    def _serve(
        self, name: str, fresh: dict[int, LoadedModel], before: LoadedModel | None, config: WrittenConfig
    ) -> None:
        """Puts versions into service: at once, or the newest on trial beside what serves, or served before."""
        rules = self._rules(config)
        candidate = next(iter(fresh.values()))
        running, serving = self.trials.get(name), self._loaded.get(name)
        if serving:
            before = serving[running.stable.version] if running else next(iter(serving.values()))
        self._kept[name] = fresh
        self._configs[name] = config
        self._files.pop(name, None)
        if not rules.percent or before is None or before.version >= candidate.version:
            self._loaded[name] = fresh
            self.trials.pop(name, None)
            return
        if running is None or running.candidate is not candidate or running.rules != rules:
            self.trials[name] = Trial(before, candidate, rules)
            logger.info(
                "a new version proves itself",
                extra={"model": name, "version": candidate.version, "beside": before.version, "percent": rules.percent},
            )
        self._loaded[name] = dict(sorted({**fresh, before.version: before}.items(), reverse=True))

    def _on_trial(self, name: str, trial: Trial, versions: Mapping[int, LoadedModel]) -> LoadedModel:
        """Returns which version a request goes to, and ends the trial where it can be judged."""
        version = trial.pick()
        if version == trial.candidate.version and self._ended(name, trial):
            return next(iter(self._loaded[name].values()))
        # A change of versions is two steps: between them, the newest takes the place of one that is not there.
        return versions.get(version) or next(iter(versions.values()))

    def _ended(self, name: str, trial: Trial) -> bool:
        verdict = trial.verdict()
        if verdict is None:
            return False
        if self.judge is not None:
            if not trial.judged:
                trial.judged = True
                self.judge(name, trial, verdict)
            return False
        # Never waits for a version that is being loaded: the next request looks again.
        if not self._one_at_a_time.acquire(blocking=False):
            return False
        try:
            return self.trials.get(name) is trial and self._end(name, trial.candidate.version, verdict)
        finally:
            self._one_at_a_time.release()

    def _end(self, name: str, candidate: int, verdict: Verdict) -> bool:
        """Ends a trial, unless it has ended already; belongs under the lock."""
        trial = self.trials.get(name)
        if trial is None or trial.candidate.version != candidate:
            return False
        facts = {"model": name, "version": candidate, "beside": trial.stable.version}
        if verdict.outcome is Outcome.ROLLED_BACK:
            self._rejected[name, candidate] = verdict.reason
            self._loaded[name] = {key: each for key, each in self._loaded[name].items() if key != candidate}
            logger.error("rolled a new version back", extra={**facts, "reason": verdict.reason})
        else:
            self._loaded[name] = self._kept[name]
            logger.info("a new version has proved itself", extra=facts)
        del self.trials[name]
        self.outcomes[name, verdict.outcome] += 1
        return True

    def _opened(self, source: ModelSource, version: int, config: WrittenConfig) -> LoadedModel:
        """Returns a loaded version: the one in service where nothing of it has changed."""
        key = (source.name, version)
        stamp = source.stamp(version)
        serving = self._loaded.get(source.name, {}).get(version)
        if serving is not None and stamp and serving.stamp == stamp:
            if fault := serving.fault:
                raise FailedPreconditionError(fault, subject=source.name, reason="NO_ENSEMBLE_MEMBER")
            return serving
        self._loading.add(key)
        try:
            model = LoadedModel(source.name, version, self._session(source, version, config), stamp=stamp)
        except TeachwaferError as error:
            self._rejected[key] = error.message
            raise
        finally:
            self._loading.discard(key)
        self._rejected.pop(key, None)
        instances = model.session.config.scheduling.instances
        if instances > self._threads:
            logger.warning(
                "a model has more instances than there are threads; those above run when a thread is free",
                extra={"model": source.name, "version": version, "instances": instances, "threads": self._threads},
            )
        logger.info(
            "loaded a model", extra={"model": source.name, "version": version, "provider": model.session.provider}
        )
        return model

    def _session(self, source: ModelSource, version: int, config: WrittenConfig) -> ModelSession | Ensemble:
        """Loads a version; whatever is wrong with it ends in one of our errors, so that it harms no other model."""
        try:
            if config.stages:
                return Ensemble(source.name, config, self.get)
            return source.open(version, config)
        except TeachwaferError:
            raise
        except Exception as error:
            raise DataLossError(
                f"Expected a version that can be read and run. Received from {source.name} version {version}: "
                f"{type(error).__name__}: {str(error)[:500]}. Restore its files or publish the model again."
            ) from error


def _members(model: LoadedModel) -> list[str]:
    """Returns the names of the models that an ensemble runs; none of a graph."""
    return model.session.written.members if isinstance(model.session, Ensemble) else []


def _chosen(policy: VersionPolicy, source: ModelSource) -> list[int]:
    """Returns the versions that a policy names, newest first."""
    versions = [each for each in source.versions if not policy.specific or each in policy.specific]
    if not versions:
        raise NotFoundError(
            "model version",
            source.name,
            f"Expected one of the versions {list(policy.specific)} of {source.name}, which its version_policy names. "
            f"Received: {list(source.versions)[:20]}. Publish one, or change the policy.",
        )
    return list(reversed(versions[-policy.latest :]))


def _tell(name: str, version: int, error: TeachwaferError) -> None:
    logger.error(
        "could not load a model",
        extra={"model": name, "version": version, "error": error.message, "reason": error.reason},
    )
