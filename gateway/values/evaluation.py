"""Scores of models."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.task import Task


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Score of one class.

    Where wafers show several patterns, a row answers one yes/no question: does the wafer show this pattern? Where only
    normal wafers teach, the row of the normal class tells how many pass, and the others how many were noticed.

    Attributes:
        class_id: Stable id.
        name: Name when the data set was frozen.
        wafers: Wafers of the class.
        lots: Lots of those wafers.
        found: Wafers of the class that were found.
        false_alarms: Wafers of other classes that were called this class; 0 for classes that are only noticed.
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
        accuracy: Share of wafers whose class, or whose whole set of patterns, is right, 0 to 1.
        classes: One score a class, in the order of the model's classes.
        confusion: Row by row, counts [true][predicted]; () except for one pattern per wafer.
        accepted_share: Share of wafers sure enough to use without a look, 0 to 1.
        accepted_error: Share of those whose class is wrong, 0 to 1.
        calibration_error: Expected calibration error, 0 to 1.
        task: What the model tells.
        auroc: Where only normal wafers teach, the chance that a normal wafer gets a higher probability of being normal
            than another one; 0 without wafers of other classes.
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
    task: Task = Task.SINGLE
    auroc: float = 0.0

    @property
    def right(self) -> int:
        """Wafers whose class, or whose whole set of patterns, is right."""
        return round(self.accuracy * self.wafers)

    def normal_figures(self, normal_id: str) -> tuple[int, int, int, int]:
        """Returns normal wafers that pass, all normal wafers, other wafers that were noticed, all other wafers.

        Args:
            normal_id: Id of the class of wafers without a pattern.
        """
        own = [each for each in self.classes if each.class_id == normal_id]
        others = [each for each in self.classes if each.class_id != normal_id]
        return (
            sum(each.found for each in own),
            sum(each.wafers for each in own),
            sum(each.found for each in others),
            sum(each.wafers for each in others),
        )


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
        worst_found: Id of the class with the lowest F1, or noticed least, "" when none has wafers.
        normal_id: Id of the class of wafers without a pattern, "" when the model knows none.
    """

    run_id: str
    part: str
    evaluation: Evaluation
    colours: dict[str, str]
    names: dict[str, str]
    has_test: bool
    best_found: str
    worst_found: str
    normal_id: str


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
