"""Scores of models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Score of one class.

    Attributes:
        class_id: Stable id.
        name: Name when the data set was frozen.
        wafers: Wafers of the class.
        lots: Lots of those wafers.
        found: Wafers of the class that were found.
        false_alarms: Wafers of other classes that were called this class.
        recall: found / wafers.
        recall_interval: 95 % Wilson interval of recall.
        precision: found / (found + false_alarms).
        f1: Harmonic mean of both.
    """

    class_id: str
    name: str
    wafers: int
    lots: int
    found: int
    false_alarms: int
    recall: float
    recall_interval: Interval
    precision: float
    f1: float

    @property
    def missed(self) -> int:
        """Wafers of the class that were called something else."""
        return self.wafers - self.found


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a model on a set of labelled wafers.

    Attributes:
        wafers: Wafers scored.
        lots: Lots they come from.
        macro_f1: Mean of the classes' F1, 0 to 1.
        macro_f1_interval: 95 % interval by bootstrap over lots.
        accuracy: Share of wafers whose class is right, 0 to 1.
        classes: One score a class, in the order of the model's classes.
        confusion: Row by row, counts [true][predicted].
        accepted_share: Share of wafers sure enough to use without a look, 0 to 1.
        accepted_error: Share of those whose class is wrong, 0 to 1.
        calibration_error: Expected calibration error, 0 to 1.
    """

    wafers: int
    lots: int
    macro_f1: float
    macro_f1_interval: Interval
    accuracy: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    accepted_share: float
    accepted_error: float
    calibration_error: float


@dataclass(frozen=True, slots=True)
class EvaluationView:
    """The evaluation of a training with what its page says about it.

    Attributes:
        run_id: Training.
        part: `test` (locked, nothing was chosen by it) or `tune`.
        evaluation: The scores.
        colours: Colour of each class id.
        names: Present name of each class id.
        has_test: Whether there is a locked test.
        best_found: Id of the class found best, "" when none has wafers.
        worst_found: Id of the class with the lowest F1, "" when none has wafers.
    """

    run_id: str
    part: str
    evaluation: Evaluation
    colours: dict[str, str]
    names: dict[str, str]
    has_test: bool
    best_found: str
    worst_found: str


@dataclass(frozen=True, slots=True)
class CellWafer:
    """A wafer of a confusion cell.

    Attributes:
        wafer_id: The wafer; still in the catalogue unless it was purged.
        true_id: Class it was taught as.
        predicted_id: Class it was called.
        probability: Of the predicted class, 0 to 1.
        lot: Its lot.
    """

    wafer_id: str
    true_id: str
    predicted_id: str
    probability: float
    lot: str
