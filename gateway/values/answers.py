"""Answers of the predictor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gateway.values.common import Problem
from gateway.values.uploads import SkippedEntry
from services.common.task import Task
from services.common.wafer_map import WaferMap


class Decision(StrEnum):
    """What an answer is worth."""

    ACCEPTED = "accepted"
    """Sure enough to use without a look."""
    NOT_SURE = "not_sure"
    """A taught class, but not sure which."""
    UNKNOWN = "unknown"
    """Unlike anything taught."""
    FAILED = "failed"
    """This wafer could not be classified; `problem` says why."""


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """Probability of one class.

    Attributes:
        class_id: Stable id.
        name: Present name in the project, else the one the model was taught with.
        colour: `#rrggbb` of the class; grey when the project is unknown.
        probability: 0 to 1.
    """

    class_id: str
    name: str
    colour: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class PredictorAnswer:
    """What the predictor says of one wafer, before it is known what that means in the project.

    Attributes:
        decision: What the answer is worth.
        class_id: Most probable class; "" when it failed.
        name: Its name when it was taught.
        probability: Its probability, 0 to 1.
        probabilities: Id, name and probability of each class, best first.
        patterns: Id, name and probability of each pattern that the wafer shows, most probable first.
        novelty: Over 1: unlike anything taught.
        heat: uint8 (rows, columns), or None.
        embedding: float32 (D,) of unit length, or None.
        problem: Why it failed.
    """

    decision: Decision
    class_id: str = ""
    name: str = ""
    probability: float = 0.0
    probabilities: tuple[tuple[str, str, float], ...] = ()
    patterns: tuple[tuple[str, str, float], ...] = ()
    novelty: float = 0.0
    heat: NDArray[np.uint8] | None = None
    embedding: NDArray[np.float32] | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A taught wafer near an answered one.

    Attributes:
        wafer_id: The taught wafer.
        class_id: Its class.
        similarity: Cosine of the angle in feature space, -1 to 1.
    """

    wafer_id: str
    class_id: str
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Answer on one wafer.

    Attributes:
        map: The wafer.
        source_name: File or entry it came from; "" otherwise.
        decision: What the answer is worth.
        class_id: Most probable class; "" when it failed.
        name: Its name.
        probability: Its probability, 0 to 1.
        probabilities: All classes, best first. Where wafers show several patterns, each stands for itself.
        novelty: About 0 at the centre of what was taught, over 1 unlike anything taught.
        task: What the model tells.
        patterns: Patterns that the wafer shows, most probable first; empty when it shows none.
        heat: uint8 (rows, columns), 255 where the dies spoke loudest for the class; None unless asked for.
        neighbours: Nearest taught wafers, nearest first; empty unless asked for.
        problem: Why it failed.
    """

    map: WaferMap
    source_name: str
    decision: Decision
    class_id: str
    name: str
    probability: float
    probabilities: tuple[ClassProbability, ...]
    novelty: float
    task: Task = Task.SINGLE
    patterns: tuple[ClassProbability, ...] = ()
    heat: NDArray[np.uint8] | None = None
    neighbours: tuple[Neighbour, ...] = ()
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers in the order of the wafers.

    Attributes:
        model_id: Model that answered.
        version: Version that answered.
        answers: One a wafer.
    """

    model_id: str
    version: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class FileAnswers:
    """Answers on the wafers of some files.

    Attributes:
        model_id: Model that answered.
        version: Version that answered.
        answers: One a wafer that could be read.
        skipped: What could not be read.
        seconds: Time from the first file to the last answer.
    """

    model_id: str
    version: int
    answers: tuple[Answer, ...]
    skipped: tuple[SkippedEntry, ...]
    seconds: float
