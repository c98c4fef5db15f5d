"""What is known of a published model version: the manifest that lies beside its files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from services.common.errors import DataLossError, InvalidArgumentError
from services.common.task import Task

FORMAT_VERSION = 1
"""Version of the manifest that this module writes and reads."""


@dataclass(frozen=True, slots=True)
class ModelClass:
    """A class that a model tells apart.

    Attributes:
        class_id: stable identifier, owned by the model's project; never changes.
        display_name: name for people at the time of teaching.
        normal: whether it is the class of wafers that show nothing. Manifests written before it was kept say no.
    """

    class_id: str
    display_name: str
    normal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """Everything that has to be known to serve a model version and to tell where it comes from.

    Attributes:
        model_id: name of the model; filled in when it is published.
        version: number of the version; filled in when it is published.
        classes: classes in the order of the model's outputs.
        size: cells along each side of the planes inside the graph.
        temperature: divisor of the logits, part of the graph; > 0.
        accept_threshold: least confidence of an accepted answer, 0..1: of a single pattern its probability, of several
            that of the whole set, of only normal 0, because the novelty decides alone.
        novelty_threshold: raw distance that the graph's `novelty` output shows as 1.0.
        dataset_version: data set version that it was taught on, `datasetVersions/{id}`.
        backbone: name of the pretrained network that it started from.
        task: what the model tells; see `services.common.task`.
        quantised: whether its convolutions are in 8 bits. Manifests written before it was kept say no.
        input: name of the graph's input.
        scores: measured figures, JSON values by name.
        golden: file with the wafers and answers that every loader repeats before serving.
        files: SHA-256 of each file by name; filled in when it is published.
        created_at: when it was made, with a time zone.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    classes: tuple[ModelClass, ...]
    size: int
    temperature: float
    accept_threshold: float
    novelty_threshold: float
    dataset_version: str
    backbone: str
    model_id: str = ""
    version: int = 0
    task: Task = Task.SINGLE
    quantised: bool = False
    input: str = "dies"
    scores: Mapping[str, Any] = field(default_factory=dict)
    golden: str = "golden.npz"
    files: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        ids = [each.class_id for each in self.classes]
        if not ids or "" in ids or len(set(ids)) != len(ids):
            raise InvalidArgumentError(f"Expected classes with different ids. Received: {ids}.", field="classes")
        if self.size < 1:
            raise InvalidArgumentError(f"Expected a size of at least 1. Received: {self.size}.", field="size")
        if not self.temperature > 0:
            raise InvalidArgumentError(
                f"Expected a temperature above 0. Received: {self.temperature}.", field="temperature"
            )
        if not 0 <= self.accept_threshold <= 1:
            raise InvalidArgumentError(
                f"Expected a probability. Received: {self.accept_threshold}.", field="accept_threshold"
            )
        if not isinstance(self.task, Task):
            raise InvalidArgumentError(f"Expected one of {', '.join(Task)}. Received: {self.task!r}.", field="task")
        if self.created_at.tzinfo is None:
            raise InvalidArgumentError("Expected a time with a time zone.", field="created_at")

    def to_json(self) -> str:
        """Return the manifest as it is stored.

        Raises:
            InvalidArgumentError: `scores` holds what JSON does not, such as NaN.
        """
        data = {
            "format_version": FORMAT_VERSION,
            "model_id": self.model_id,
            "version": self.version,
            "created_at": self.created_at.isoformat(),
            "task": self.task.value,
            "quantised": self.quantised,
            "input": self.input,
            "size": self.size,
            "classes": [asdict(each) for each in self.classes],
            "temperature": self.temperature,
            "accept_threshold": self.accept_threshold,
            "novelty_threshold": self.novelty_threshold,
            "dataset_version": self.dataset_version,
            "backbone": self.backbone,
            "scores": dict(self.scores),
            "golden": self.golden,
            "files": dict(self.files),
        }
        try:
            return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"Expected finite JSON values. Received: {error}.", field="scores") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelManifest":
        """Return the manifest that `to_json` wrote; fields that this version does not know are left out.

        Raises:
            DataLossError: it is no manifest, misses a field or holds a value out of range.
        """
        try:
            data = json.loads(text)
            if data["format_version"] != FORMAT_VERSION:
                raise DataLossError(
                    f"Expected a model manifest of layout {FORMAT_VERSION}. Received: {data['format_version']!r}. "
                    f"Serve it with the release that wrote it, or publish it again."
                )
            return cls(
                model_id=str(data["model_id"]),
                version=int(data["version"]),
                created_at=datetime.fromisoformat(data["created_at"]),
                task=Task(data["task"]),
                quantised=bool(data.get("quantised", False)),
                input=str(data["input"]),
                size=int(data["size"]),
                classes=tuple(
                    ModelClass(str(each["class_id"]), str(each["display_name"]), bool(each.get("normal", False)))
                    for each in data["classes"]
                ),
                temperature=float(data["temperature"]),
                accept_threshold=float(data["accept_threshold"]),
                novelty_threshold=float(data["novelty_threshold"]),
                dataset_version=str(data["dataset_version"]),
                backbone=str(data["backbone"]),
                scores=dict(data["scores"]),
                golden=str(data["golden"]),
                files={str(name): str(digest) for name, digest in data["files"].items()},
            )
        except KeyError as error:
            raise DataLossError(
                f"Expected the field {error.args[0]!r} in a model's manifest. Received a manifest without it. "
                f"Publish the model again."
            ) from error
        except (ValueError, TypeError, AttributeError, InvalidArgumentError) as error:
            raise DataLossError(f"The model's manifest is damaged ({error}). Publish the model again.") from error
