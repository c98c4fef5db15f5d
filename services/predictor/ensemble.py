"""An ensemble: models whose tensors go from one to the next inside the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from services.common.errors import FailedPreconditionError, NotFoundError, TeachwaferError, UnavailableError
from services.predictor.config_fields import wrong
from services.predictor.ensemble_config import ENSEMBLE, completed_ensemble
from services.predictor.model_config import EnsembleStep
from services.predictor.served_model import ServedModel
from services.predictor.tensors import TensorInfo

if TYPE_CHECKING:
    from services.predictor.config_converters import WrittenConfig
    from services.predictor.model_server import LoadedModel

Members = list[list[tuple["EnsembleStep", "LoadedModel"]]]
"""Steps of an ensemble by stages, with the models that run them."""


class Ensemble(ServedModel):
    """A version of an ensemble. Its models are those that serve when a request comes, checked whenever they change.

    Args:
        name: Name of the ensemble.
        written: How it is to be served.
        find: Returns a loaded model of a name and version; 0 is the newest.

    Attributes:
        written: How it is to be served, as written.

    Raises:
        FailedPreconditionError: A model of a step is not loaded.
        InvalidArgumentError: A step does not fit its model, or the tensors of two steps do not fit each other.
    """

    def __init__(self, name: str, written: WrittenConfig, find: Callable[[str, int], LoadedModel]) -> None:
        super().__init__(ENSEMBLE, completed_ensemble(name, written))
        self.written = written
        self._name = name
        self._find = find
        self._checked: tuple[int, ...] = ()
        self.members()

    @property
    def fault(self) -> str:
        """Why it cannot be run with the models that are loaded now; empty where it can."""
        try:
            self.members()
        except TeachwaferError as error:
            return error.message
        return ""

    def members(self) -> Members:
        """Returns the models that run the steps of one request.

        Raises:
            FailedPreconditionError: One of them is not loaded.
            InvalidArgumentError: One of them is another than the ensemble was made for.
        """
        members = [[(step, self._member(step)) for step in stage] for stage in self.written.stages]
        serials = tuple(model.serial for stage in members for _, model in stage)
        if serials != self._checked:
            self._check([each for stage in members for each in stage])
            self._checked = serials
        return members

    def source(self, output: str) -> tuple[LoadedModel, str] | None:
        """Returns the model that gives an output, and its name there; None for an input that is an output, too."""
        for stage in self.written.stages:
            for step in stage:
                for theirs, tensor in step.outputs.items():
                    if tensor == output:
                        return self._member(step), theirs
        return None

    def _member(self, step: EnsembleStep) -> LoadedModel:
        try:
            return self._find(step.model, step.version)
        except (NotFoundError, UnavailableError):
            version = f" version {step.version}" if step.version else ""
            raise FailedPreconditionError(
                f"Expected the model {step.model}{version}, which a step of the ensemble {self._name} runs, to be "
                f"loaded. Received: it is not. Load {self._name} again, which loads its models, too.",
                subject=step.model,
                reason="NO_ENSEMBLE_MEMBER",
            ) from None

    def _check(self, members: list[tuple[EnsembleStep, LoadedModel]]) -> None:
        """Raises InvalidArgumentError unless each tensor has one type and shape wherever it is."""
        known = dict(self.taken)
        for step, model in members:
            taken, answered = model.session.taken, model.session.answered
            if step.inputs.keys() != taken.keys():
                raise wrong(
                    self._name,
                    f"the inputs of {model.name}, {sorted(taken)[:20]}, in the input_map of its step",
                    str(sorted(step.inputs)[:20]),
                )
            if not step.outputs.keys() <= answered.keys():
                raise wrong(
                    self._name,
                    f"outputs of {model.name}, {sorted(answered)[:20]}, in the output_map of its step",
                    str(sorted(step.outputs)[:20]),
                )
            if self.config.max_batch_size > model.session.config.max_batch_size:
                raise wrong(
                    self._name,
                    f"a max_batch_size of at most {model.session.config.max_batch_size}, that of {model.name}",
                    str(self.config.max_batch_size),
                )
            for theirs, tensor in step.inputs.items():
                self._check_tensor(tensor, taken[theirs], f"the input {theirs} of {model.name}", known[tensor])
            known |= {tensor: answered[theirs] for theirs, tensor in step.outputs.items()}
        for name, info in self.answered.items():
            self._check_tensor(name, info, "an output of the ensemble", known[name])

    def _check_tensor(self, tensor: str, taken: TensorInfo, where: str, given: TensorInfo) -> None:
        fits = (
            taken.datatype == given.datatype
            and len(taken.shape) == len(given.shape)
            and all(-1 in sides or len(set(sides)) == 1 for sides in zip(taken.shape, given.shape, strict=True))
        )
        if not fits:
            raise wrong(
                self._name,
                f"the tensor {tensor} as {taken.datatype} {list(taken.shape)}, as {where}",
                f"{given.datatype} {list(given.shape)}",
            )
