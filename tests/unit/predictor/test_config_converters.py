"""`config.pbtxt`: each field is followed, told to have no effect or refused; what is missing comes from the graph."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from inference import model_config_pb2

from services.common.errors import InvalidArgumentError
from services.predictor.config_converters import completed, config_from_bytes, read_config
from services.predictor.config_fields import FOLLOWED, FOLLOWED_BY_ENSEMBLES, REFUSED, WITHOUT_EFFECT
from services.predictor.model_config import CUDA, OPENVINO, TENSORRT, EnsembleStep, QueuePolicy, ServingConfig
from services.predictor.tensors import TensorInfo

X, Y = TensorInfo("x", "FP32", (-1, 3)), TensorInfo("y", "FP32", (-1, 3))


def written(tmp_path: Path, text: str):
    (tmp_path / "config.pbtxt").write_text(text)
    return read_config("plus", tmp_path)


def serving(tmp_path: Path, text: str, inputs=(X,), outputs=(Y,)) -> ServingConfig:
    return completed("plus", written(tmp_path, text), inputs, outputs)


def test_the_tables_name_fields_of_the_published_schema() -> None:
    paths: set[str] = set()

    def walk(descriptor: object, prefix: str) -> None:
        for field in descriptor.fields:
            paths.add(f"{prefix}{field.name}")
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                walk(field.message_type, f"{prefix}{field.name}.")

    walk(model_config_pb2.ModelConfig.DESCRIPTOR, "")
    named = [*FOLLOWED, *WITHOUT_EFFECT, *REFUSED]
    assert set(named) <= paths
    assert FOLLOWED_BY_ENSEMBLES <= FOLLOWED
    assert len(named) == len(set(named))


def test_everything_comes_from_the_graph_where_nothing_is_written(tmp_path: Path) -> None:
    config = completed("plus", read_config("plus", tmp_path), [X], [Y])
    assert (config.max_batch_size, config.inputs, config.outputs) == (4, (X,), (Y,))
    message = config_from_bytes(config.message)
    assert (message.name, message.backend, message.platform) == ("plus", "onnxruntime", "onnxruntime_onnx")
    assert message.version_policy.latest.num_versions == 1
    assert message.HasField("dynamic_batching")
    fixed = completed("plus", read_config("plus", tmp_path), [TensorInfo("x", "FP32", (1, 3))], [Y])
    assert (fixed.max_batch_size, fixed.scheduling.dynamic) == (0, False)


def test_what_is_written_is_followed(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    config = serving(
        tmp_path,
        """
        name: "plus" platform: "onnxruntime_onnx" max_batch_size: 16
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 1 ] reshape: { shape: [ 3 ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
        dynamic_batching {
          preferred_batch_size: [ 8, 4 ] max_queue_delay_microseconds: 100
          priority_levels: 2 default_priority_level: 2
          default_queue_policy { max_queue_size: 5 }
          priority_queue_policy {
            key: 1
            value { timeout_action: DELAY default_timeout_microseconds: 7 allow_timeout_override: true }
          }
        }
        instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 kind: KIND_CPU } ]
        response_cache { enable: true }
        metric_tags { key: "line" value: "3" }
        """,
    )
    assert config.inputs == (TensorInfo("x", "FP32", (-1, 3, 1)),)
    assert config.reshaped == {"x": (3,)}
    assert config.labels == {"y": ("a", "b")}
    scheduling = config.scheduling
    assert (scheduling.preferred, scheduling.max_delay_us, scheduling.instances) == ((4, 8), 100, 3)
    assert (scheduling.levels, scheduling.default_level) == (2, 2)
    assert scheduling.policy(1) == QueuePolicy(7, delays=True, allow_override=True)
    assert scheduling.policy(2) == QueuePolicy(max_size=5)
    assert (config.response_cache, config.metric_tags) == (True, {"line": "3"})


def test_how_onnxruntime_runs_it_is_followed(tmp_path: Path) -> None:
    execution = written(
        tmp_path,
        """
        instance_group [ { kind: KIND_GPU gpus: [ 1 ] } ]
        optimization {
          graph { level: 1 }
          execution_accelerators {
            gpu_execution_accelerator [
              { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" }
                parameters { key: "max_workspace_size_bytes" value: "9" } },
              { name: "cuda" parameters { key: "cudnn_conv_use_max_workspace" value: "0" } }
            ]
            cpu_execution_accelerator [ { name: "openvino" } ]
          }
        }
        parameters { key: "intra_op_thread_count" value: { string_value: "3" } }
        parameters { key: "execution_mode" value: { string_value: "1" } }
        """,
    ).execution
    assert (execution.gpu, execution.device, execution.graph_level) == (True, 1, 1)
    assert execution.accelerators == (
        (TENSORRT, {"trt_max_workspace_size": "9", "trt_fp16_enable": "1"}),
        (CUDA, {"cudnn_conv_use_max_workspace": "0"}),
        (OPENVINO, {}),
    )
    assert (execution.intra_op_threads, execution.parallel) == (3, True)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("input [ { name: 'x' data_type: TYPE_FP32 dims: [ 3 ] format: FORMAT_NCHW } ]", "input.format"),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
        ("optimization { cuda { graphs: true } }", "optimization.cuda"),
        ("parameters { key: 'colour' value: { string_value: 'red' } }", "parameters.colour"),
        ("model_metrics { metric_control { metric_identifier { family: 'x' } } }", "model_metrics"),
    ],
)
def test_what_has_no_effect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, field: str) -> None:
    with caplog.at_level(logging.WARNING):
        written(tmp_path, text)
    assert [each.field for each in caplog.records] == [field]


@pytest.mark.parametrize(
    "text",
    [
        "colour: 1",
        "runtime: 'x.so'",
        "sequence_batching { }",
        "ensemble_scheduling { }",
        "ensemble_scheduling { step { model_name: 'x' model_version: 1 } }",
        "batch_input { kind: BATCH_ELEMENT_COUNT target_name: 'x' }",
        "batch_output { target_name: 'y' }",
        "cc_model_filenames { key: '8.0' value: 'x.onnx' }",
        "model_operations { op_library_filename: 'x.so' }",
        "model_transaction_policy { decoupled: true }",
        "model_repository_agents { agents { name: 'x' } }",
        "instance_group [ { rate_limiter { priority: 1 } } ]",
        "instance_group [ { passive: true } ]",
        "instance_group [ { kind: KIND_MODEL } ]",
        "instance_group [ { kind: KIND_CPU }, { kind: KIND_GPU } ]",
        "instance_group [ { kind: KIND_GPU gpus: [ 0, 1 ] } ]",
        "input [ { name: 'x' data_type: TYPE_FP32 dims: [ 3 ] allow_ragged_batch: true } ]",
        "input [ { name: 'x' data_type: TYPE_FP32 dims: [ 3 ] optional: true } ]",
        "output [ { name: 'y' data_type: TYPE_FP32 dims: [ 3 ] is_shape_tensor: true } ]",
        "name: 'other'",
        "backend: 'tensorflow'",
        "platform: 'ensemble'",
        "max_batch_size: -1",
        "version_policy { specific { } }",
        "version_policy { specific { versions: [ 0 ] } }",
        "default_model_filename: '../model.onnx'",
        "optimization { graph { level: 5 } }",
        "optimization { execution_accelerators { gpu_execution_accelerator [ { name: 'gpu_io' } ] } }",
        "parameters { key: 'intra_op_thread_count' value: { string_value: 'many' } }",
        "output [ { name: 'y' data_type: TYPE_FP32 dims: [ 3 ] label_filename: '../labels.txt' } ]",
        "output [ { name: 'y' data_type: TYPE_FP32 dims: [ 3 ] label_filename: 'labels.txt' } ]",
    ],
)
def test_what_is_not_done_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Received"):
        written(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "input [ { name: 'z' data_type: TYPE_FP32 dims: [ 3 ] } ]",
        "input [ { name: 'x' data_type: TYPE_FP64 dims: [ 3 ] } ]",
        "max_batch_size: 4 input [ { name: 'x' data_type: TYPE_FP32 dims: [ 4 ] } ]",
        "max_batch_size: 4 input [ { name: 'x' data_type: TYPE_FP32 dims: [ -1 ] } ]",
        "max_batch_size: 4 input [ { name: 'x' data_type: TYPE_FP32 dims: [ 4 ] reshape: { shape: [ 3 ] } } ]",
        "output [ { name: 'y' dims: [ 3 ] data_type: TYPE_FP32 }, { name: 'w' dims: [ 3 ] data_type: TYPE_FP32 } ]",
        "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 8 ] }",
        "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 0 ] }",
        "max_batch_size: 4 dynamic_batching { priority_levels: 2 }",
        "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
        "max_batch_size: 4 dynamic_batching { priority_queue_policy { key: 1 value { } } }",
        "max_batch_size: 4 model_warmup { name: 'w' batch_size: 5 inputs { key: 'x' value { dims: [ 3 ] } } }",
        "max_batch_size: 4 model_warmup { name: 'w' batch_size: 1 }",
        "input [ { name: 'x' data_type: TYPE_FP32 dims: [ -1, 3 ] } ] dynamic_batching { }",
    ],
)
def test_what_contradicts_the_graph_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Received"):
        serving(tmp_path, text)


def test_a_batch_needs_a_free_first_dimension(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="free first dimension"):
        serving(tmp_path, "max_batch_size: 4", [TensorInfo("x", "FP32", (1, 3))], [TensorInfo("y", "FP32", (1, 3))])


def test_shapes_outside_and_inside_follow_each_other() -> None:
    import numpy as np

    config = ServingConfig(
        message=b"", max_batch_size=8, inputs=(), outputs=(), reshaped={"x": (-1, 2, 5), "novelty": ()}
    )
    assert config.inside("x", np.zeros((3, 7, 10)), (-1, -1, 10)).shape == (3, 7, 2, 5)
    assert config.outside("x", np.zeros((3, 7, 2, 5)), (-1, -1, 10)).shape == (3, 7, 10)
    assert config.outside("novelty", np.zeros(3), (-1, 1)).shape == (3, 1)
    assert config.inside("other", np.zeros((3, 1)), (-1, 1)).shape == (3, 1)


ENSEMBLE = """
    platform: "ensemble" max_batch_size: 4
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
    ensemble_scheduling { step [
      { model_name: "b" model_version: 2 input_map { key: "i" value: "z" } output_map { key: "o" value: "y" } },
      { model_name: "a" model_version: -1 input_map { key: "i" value: "x" } output_map { key: "o" value: "z" } }
    ] }
"""


def test_the_steps_of_an_ensemble_are_put_in_order(tmp_path: Path) -> None:
    config = written(tmp_path, ENSEMBLE)
    assert config.stages == (
        (EnsembleStep("a", 0, {"i": "x"}, {"o": "z"}),),
        (EnsembleStep("b", 2, {"i": "z"}, {"o": "y"}),),
    )
    assert config.members == ["a", "b"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"ensemble" max', '"onnxruntime_onnx" max', "platform 'ensemble'"),
        ("max_batch_size: 4", 'backend: "onnxruntime"', "no graph of its own"),
        ("max_batch_size: 4", "dynamic_batching { preferred_batch_size: [ 4 ] }", "scheduling_choice"),
        ("max_batch_size: 4", "instance_group [ { count: 2 } ]", "no graph of its own"),
        ("max_batch_size: 4", "response_cache { enable: true }", "no graph of its own"),
        ("dims: [ 3 ] }", "dims: [ 3 ] reshape { shape: [ 3, 1 ] } }", "no graph of its own"),
        ("data_type: TYPE_FP32", "", "data_type and dims"),
        ('model_name: "b"', 'model_name: "plus"', "another model"),
        ('model_name: "b"', "", "another model"),
        ('model_name: "b"', 'model_name: "b" model_namespace: "n"', "one repository"),
        ("model_version: 2", "model_version: -2", "version above 0"),
        ('value: "z" } output', 'value: "w" } output', "a source of each tensor"),
        ('value: "z" } output', 'value: "y" } output', "need each other"),
        ('value: "x"', 'value: "z"', "which none takes"),
        ('output_map { key: "o" value: "z" }', 'output_map { key: "o" value: "y" }', "one source"),
        ('output_map { key: "o" value: "z" }', "", "a name of a tensor"),
        ('name: "x" data', "data", "a name of its own"),
    ],
)
def test_an_ensemble_that_cannot_run_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in ENSEMBLE
    with pytest.raises(InvalidArgumentError, match=told):
        written(tmp_path, ENSEMBLE.replace(old, new, 1))


def test_parameters_of_an_ensemble_are_told_to_have_no_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text = "parameters { key: 'intra_op_thread_count' value: { string_value: '2' } }"
        written(tmp_path, f"{ENSEMBLE} {text} parameters {{ key: 'canary_percent' value: {{ string_value: '5' }} }}")
    assert [each.field for each in caplog.records] == ["parameters.intra_op_thread_count"]
