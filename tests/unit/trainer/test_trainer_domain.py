"""What the trainer refuses, and with which words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from services.common.dataset import DatasetClass, DatasetManifest, Split
from services.common.errors import FailedPreconditionError, InvalidArgumentError
from services.common.task import Task
from services.trainer.domain import TrainingConfig, TrainingSpec, check_dataset, check_generated, check_spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1001),
        ("batch_size", 0),
        ("batch_size", 4097),
        ("learning_rate", 0.0),
        ("learning_rate", 1.5),
        ("learning_rate", float("nan")),
        ("model_size", "huge"),
        ("backbone", "resnet"),
        ("augmentation", -0.1),
        ("augmentation", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
        ("early_stopping_epochs", -1),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    spec = TrainingSpec("d", config=replace(TrainingConfig(), **{field: value}))
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(spec)
    assert [each.field for each in caught.value.violations] == [f"training_job.config.{field}"]


def test_defaults_are_in_range_and_specs_survive_json():
    spec = TrainingSpec("d", ("g",), TrainingConfig(epochs=3, model_size="best"))
    check_spec(spec)
    assert TrainingSpec.from_json(spec.to_json()) == spec


def manifest(counts, parent="", dataset_id="d", normal=(), mixed=0):
    """Returns the manifest of a data set with (train, tune, test) wafers a class, `mixed` of them of two classes."""
    classes = tuple(DatasetClass(name, name.upper(), "none" if name in normal else "") for name in counts)
    wafers = sum(sum(numbers) for numbers in counts.values()) - mixed
    template = {"wafers": wafers, "origins": {}, "lots": 1, "sha256": "", "size_bytes": 1, "created_at": None}
    sides = {name: dict(zip(Split, numbers, strict=True)) for name, numbers in counts.items()}
    return DatasetManifest(dataset_id=dataset_id, classes=classes, counts=sides, parent=parent, **template)


@pytest.mark.parametrize("task", [Task.SINGLE, Task.SEVERAL])
def test_too_few_classes_or_wafers_say_which_and_how_many(task):
    with pytest.raises(FailedPreconditionError, match=r"2 classes.*Received: 1"):
        check_dataset(manifest({"a": (9, 0, 0)}), task)
    with pytest.raises(FailedPreconditionError, match=r"class 'B'.*Received: 4, 4 for training.*or remove it"):
        check_dataset(manifest({"a": (9, 0, 0), "b": (4, 0, 0)}), task)
    with pytest.raises(FailedPreconditionError, match=r"class 'B'.*0 for training"):
        check_dataset(manifest({"a": (9, 0, 0), "b": (0, 4, 4)}), task)
    check_dataset(manifest({"a": (3, 1, 1), "b": (5, 0, 0)}), task)
    check_dataset(manifest({"a": (3, 1, 1), "n": (5, 0, 0)}, normal="n"), task)


def test_wafers_of_several_classes_are_refused_where_one_is_taught():
    mixed = manifest({"a": (9, 0, 0), "b": (9, 0, 0)}, mixed=3)
    with pytest.raises(FailedPreconditionError, match=r"show several\. Choose the project type") as caught:
        check_dataset(mixed, Task.SINGLE)
    assert caught.value.reason == "SEVERAL_CLASSES"
    check_dataset(mixed, Task.SEVERAL)


def test_only_normal_needs_a_normal_class_and_nothing_else():
    with pytest.raises(FailedPreconditionError, match=r"normal class.*Received: A, B") as caught:
        check_dataset(manifest({"a": (30, 0, 0), "b": (30, 0, 0)}), Task.NORMAL)
    assert caught.value.reason == "NO_NORMAL_CLASS"
    with pytest.raises(FailedPreconditionError, match=r"20 wafers of class 'N'.*Received: 19, 9") as caught:
        check_dataset(manifest({"n": (9, 5, 5)}, normal="n"), Task.NORMAL)
    assert "remove" not in caught.value.message
    with pytest.raises(FailedPreconditionError, match=r"one normal class at most. Received: M, N"):
        check_dataset(manifest({"m": (30, 0, 0), "n": (30, 0, 0)}, normal="mn"), Task.NORMAL)
    check_dataset(manifest({"n": (14, 3, 3)}, normal="n"), Task.NORMAL)
    check_dataset(manifest({"a": (0, 0, 1), "n": (20, 0, 0)}, normal="n"), Task.NORMAL)


def test_two_normal_classes_cannot_both_be_no_pattern():
    two = manifest({"m": (9, 0, 0), "n": (9, 0, 0), "a": (9, 0, 0)}, normal="mn")
    with pytest.raises(FailedPreconditionError, match="one normal class at most"):
        check_dataset(two, Task.SEVERAL)
    check_dataset(two, Task.SINGLE)


def test_wafers_generated_from_something_else_are_refused():
    parent = manifest({"a": (5, 0, 0), "b": (5, 0, 0)})
    check_generated(parent, manifest({"a": (5, 0, 0)}, parent="d", dataset_id="g"))
    with pytest.raises(FailedPreconditionError, match="generated from"):
        check_generated(parent, manifest({"a": (5, 0, 0)}, parent="other", dataset_id="g"))
    with pytest.raises(FailedPreconditionError, match="z in datasetVersions/g"):
        check_generated(parent, manifest({"z": (5, 0, 0)}, parent="d", dataset_id="g"))


def test_the_service_checks_requests_without_tensorflow():
    code = (
        "import sys, services.trainer.__main__; "
        "print([name for name in ('tensorflow', 'keras', 'tf2onnx') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
