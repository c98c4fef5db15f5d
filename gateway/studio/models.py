"""Published models and the model server."""

from __future__ import annotations

from gateway.values import ModelVersion


class ModelsRoom:
    """Publish models, load and unload them."""

    async def list(self) -> tuple[ModelVersion, ...]:
        """Returns all versions of all models, by name, newest version first.

        Versions that this gateway published are listed with state UNKNOWN while the predictor cannot be reached.
        """
        raise NotImplementedError

    async def of_project(self, project_id: str) -> tuple[ModelVersion, ...]:
        """Returns the versions of a project's model, newest first."""
        raise NotImplementedError

    async def publish(self, run_id: str) -> ModelVersion:
        """Publishes the model of a succeeded training and loads it; done already, it returns the same version.

        Raises:
            NotFoundError: There is no such training.
            FailedPreconditionError: It has not succeeded, or the model fails its checks.
            UnavailableError: Trainer or predictor cannot be reached; try again.
        """
        raise NotImplementedError

    async def load(self, model_id: str) -> None:
        """Loads the newest version of a model beside the one that serves, checks it and swaps.

        Raises:
            NotFoundError: The repository has no such model.
            FailedPreconditionError: The version was refused; the one before keeps serving.
            UnavailableError: The predictor cannot be reached.
        """
        raise NotImplementedError

    async def unload(self, model_id: str) -> None:
        """Takes a model out of service; its versions stay in the repository.

        Raises:
            NotFoundError: The repository has no such model.
            UnavailableError: The predictor cannot be reached.
        """
        raise NotImplementedError
