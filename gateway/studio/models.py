"""Published models and the model server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.catalogue import people, projects, runs
from gateway.catalogue.runs import Published
from gateway.studio.desk import Desk
from gateway.studio.minder import Minder, require_success
from gateway.studio.people import current_person
from gateway.values import ModelState, ModelVersion
from services.common.errors import DeadlineExceededError, FailedPreconditionError, InternalError, UnavailableError


class ModelsRoom:
    """Publish models, load and unload them."""

    def __init__(self, desk: Desk, minder: Minder) -> None:
        self._desk = desk
        self._minder = minder

    async def list(self) -> tuple[ModelVersion, ...]:
        """Returns all versions of all models, by name, newest version first.

        Versions that this gateway published are listed with state UNKNOWN while the predictor cannot be reached.
        """
        known = await self._desk.read(lambda connection: tuple(runs.versions(connection)))
        return await self._merged(known)

    async def of_project(self, project_id: str) -> tuple[ModelVersion, ...]:
        """Returns the versions of a project's model, newest first."""
        project = await self._desk.read(lambda connection: projects.get(connection, project_id))
        return tuple(each for each in await self.list() if each.model_id == project.model_id)

    async def publish(self, run_id: str) -> ModelVersion:
        """Publishes the model of a succeeded training and loads it; done already, it returns the same version.

        Raises:
            NotFoundError: There is no such training.
            FailedPreconditionError: It has not succeeded, or the model fails its checks.
            UnavailableError: Trainer or predictor cannot be reached; try again.
        """
        row = await self._desk.read(lambda connection: runs.run(connection, run_id, "training"))
        run = await self._minder.look(row) if not row.state.ended else None
        require_success(row.state if run is None else run.state, run_id)
        published = await self._minder.finish(row, again=True)
        if published is None:
            raise InternalError("A succeeded training was not published.")
        return (await self._merged([published], only=True))[0]

    async def publish_quantised(self, run_id: str) -> ModelVersion:
        """Publishes the quantised variant of a training as the newest version and loads it.

        Raises:
            NotFoundError: There is no such training.
            FailedPreconditionError: Its model was not published, it has no quantised variant (NOT_QUANTISED), or one
                that answers otherwise too often (QUANTISED_DIFFERS).
            UnavailableError: Trainer or predictor cannot be reached; try again.
        """
        row = await self._desk.read(lambda connection: runs.run(connection, run_id, "training"))
        if await self._desk.read(lambda connection: runs.version_of_run(connection, run_id)) is None:
            raise FailedPreconditionError(
                f"Expected a training whose model was published. Received: {run_id!r}. Publish its model first.",
                subject=run_id,
                reason="NOT_PUBLISHED",
            )
        return (await self._merged([await self._minder.publish_quantised(row)], only=True))[0]

    async def load(self, model_id: str) -> None:
        """Loads the newest version of a model beside the one that serves, checks it and swaps.

        Raises:
            NotFoundError: The repository has no such model.
            FailedPreconditionError: The version was refused; the one before keeps serving.
            UnavailableError: The predictor cannot be reached.
        """
        await self._desk.clients.predictor.load(model_id)
        await self._log("model.load", model_id)

    async def unload(self, model_id: str) -> None:
        """Takes a model out of service; its versions stay in the repository.

        Raises:
            NotFoundError: The repository has no such model.
            UnavailableError: The predictor cannot be reached.
        """
        await self._desk.clients.predictor.unload(model_id)
        await self._log("model.unload", model_id)

    async def _merged(self, known: Sequence[Published], *, only: bool = False) -> tuple[ModelVersion, ...]:
        """Puts together what the catalogue, the repository and the server say of each version.

        Args:
            known: Versions that the catalogue knows.
            only: Whether to leave out all others.
        """
        merged = {(each.model_id, each.version): _version(each) for each in known}
        try:
            indexed = await self._desk.clients.predictor.index()
            loaded = await self._desk.clients.predictor.loaded()
        except (UnavailableError, DeadlineExceededError):
            indexed, loaded = (), ()
        else:
            merged = {key: replace(each, state=ModelState.UNLOADED) for key, each in merged.items()}
        for told in indexed:
            key = (told.model_id, told.version)
            if told.version > 0 and (key in merged or not only):
                merged[key] = replace(merged.get(key, told), state=told.state, reason=told.reason)
        for told in loaded:
            key = (told.model_id, told.version)
            if key in merged or not only:
                merged[key] = replace(
                    merged.get(key, told),
                    state=ModelState.READY,
                    reason="",
                    classes=told.classes,
                    device=told.device,
                    wafers=told.wafers,
                    latency_ms=told.latency_ms,
                    quantised=told.quantised,
                )
        return tuple(sorted(merged.values(), key=lambda each: (each.model_id, -each.version)))

    async def _log(self, action: str, model_id: str) -> None:
        person = current_person()
        await self._desk.write(lambda connection: people.log(connection, person, action, f"models/{model_id}"))


def _version(published: Published) -> ModelVersion:
    return ModelVersion(
        model_id=published.model_id,
        version=published.version,
        state=ModelState.UNKNOWN,
        project_id=published.project_id,
        run_id=published.run_id,
        published_at=published.published_at,
        score=published.score,
        quantised=published.quantised,
    )
