"""What is the same of everything that can be called by the name of a model."""

from __future__ import annotations

from services.common.errors import FailedPreconditionError
from services.common.model_manifest import ModelManifest
from services.predictor.model_config import ServingConfig
from services.predictor.tensors import TensorInfo


class ServedModel:
    """A graph, or an ensemble of models.

    Args:
        provider: What runs it, as "CPUExecutionProvider".
        config: How it is served.

    Attributes:
        provider: What runs it.
        config: How it is served.
        taken: What callers send, by name.
        answered: What callers get, by name.
    """

    def __init__(self, provider: str, config: ServingConfig) -> None:
        self.provider = provider
        self.config = config
        self.taken: dict[str, TensorInfo] = {each.name: each for each in config.inputs}
        self.answered: dict[str, TensorInfo] = {each.name: each for each in config.outputs}

    @property
    def takes_wafers(self) -> bool:
        """Whether it is a model of wafers, published with a manifest, and nothing else."""
        return False

    @property
    def manifest(self) -> ModelManifest:
        """What is known of a model of wafers.

        Raises:
            FailedPreconditionError: It is none.
        """
        raise self.no_wafers()

    @staticmethod
    def no_wafers() -> FailedPreconditionError:
        """Returns the error of a call that needs a model of wafers and names another one."""
        return FailedPreconditionError(
            "Expected a model of wafers, published with a manifest. Received: another model, which ModelInfer of "
            "inference.GRPCInferenceService runs. Call that, or name a model that was taught here.",
            reason="NO_WAFER_MODEL",
        )
