"""Between `config.pbtxt` of an ensemble and what it does: its steps, checked as far as they say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from inference import model_config_pb2

from services.predictor.config_fields import tensor_infos, wrong
from services.predictor.model_config import EnsembleStep, Scheduling, ServingConfig, Stages

if TYPE_CHECKING:
    from services.predictor.config_converters import WrittenConfig

ENSEMBLE = "ensemble"
"""Platform of an ensemble."""

_NEWEST = -1


def stages_of(name: str, message: model_config_pb2.ModelConfig) -> Stages:
    """Returns the steps of an ensemble: each needs only what callers send and what the stages before it give.

    Args:
        name: Name of the ensemble.
        message: Its configuration.

    Raises:
        InvalidArgumentError: There is no step, a tensor has no source or several, or steps wait for each other.
    """
    told = message.ensemble_scheduling.step
    if not told:
        raise wrong(name, "at least one step in ensemble_scheduling", "none")
    steps = [_step(name, index, each) for index, each in enumerate(told)]
    inputs, outputs = _names(name, "input", message.input), _names(name, "output", message.output)
    sources = Counter([*inputs, *(tensor for step in steps for tensor in step.outputs.values())])
    read = {tensor for step in steps for tensor in step.inputs.values()}
    if several := sorted(tensor for tensor, count in sources.items() if count > 1):
        raise wrong(name, "one source of each tensor: an input, or one output of one step", f"more of {several[:10]}")
    if missing := sorted((read | set(outputs)) - set(sources)):
        raise wrong(
            name,
            "a source of each tensor that a step or an output takes, an input or an output of a step",
            f"none of {missing[:10]}",
        )
    if unread := sorted(set(inputs) - read):
        raise wrong(name, "inputs that a step takes", f"{unread[:10]}, which none takes")
    stages, there = [], set(inputs)
    while steps:
        stage = tuple(step for step in steps if there.issuperset(step.inputs.values()))
        if not stage:
            raise wrong(name, "steps that can run one after another", f"steps of {_models(steps)} that need each other")
        stages.append(stage)
        steps = [step for step in steps if step not in stage]
        there.update(tensor for step in stage for tensor in step.outputs.values())
    return tuple(stages)


def completed_ensemble(name: str, written: WrittenConfig) -> ServingConfig:
    """Completes the configuration of an ensemble, which has to name all its inputs and outputs itself.

    Args:
        name: Name of the ensemble.
        written: Configuration as written.
    """
    message = model_config_pb2.ModelConfig()
    message.CopyFrom(written.message)
    message.name, message.platform = name, ENSEMBLE
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    return ServingConfig(
        message=message.SerializeToString(),
        max_batch_size=message.max_batch_size,
        inputs=tensor_infos(message.input, message.max_batch_size),
        outputs=tensor_infos(message.output, message.max_batch_size),
        labels=written.labels,
        scheduling=Scheduling(dynamic=False),
        metric_tags=dict(message.metric_tags),
    )


def _step(name: str, index: int, step: model_config_pb2.ModelEnsembling.Step) -> EnsembleStep:
    where = f"ensemble_scheduling.step[{index}]"
    if not step.model_name or step.model_name == name:
        raise wrong(name, f"the name of another model in {where}.model_name", repr(step.model_name[:100]))
    if step.model_version < _NEWEST:
        raise wrong(name, f"a version above 0, or -1 for the newest, in {where}.model_version", str(step.model_version))
    if not step.input_map or not step.output_map or not all([*step.input_map.values(), *step.output_map.values()]):
        raise wrong(name, f"a name of a tensor for each input and output in {where}", "an empty map or name")
    return EnsembleStep(step.model_name, max(step.model_version, 0), dict(step.input_map), dict(step.output_map))


def _names(name: str, kind: str, tensors: Any) -> list[str]:
    """Returns the names of the inputs or outputs, each of which has to have a type and dimensions."""
    names = [each.name for each in tensors]
    if not names or "" in names or len(set(names)) != len(names):
        raise wrong(name, f"at least one {kind}, each with a name of its own", str(names[:10]))
    for each in tensors:
        if not each.data_type or any(side < 1 and side != -1 for side in each.dims):
            raise wrong(
                name,
                f"data_type and dims, above 0 or -1, of the {kind} {each.name}, because an ensemble has no graph",
                f"{model_config_pb2.DataType.Name(each.data_type)} and {list(each.dims)[:8]}",
            )
    return names


def _models(steps: list[EnsembleStep]) -> str:
    return ", ".join(sorted({step.model for step in steps}))
