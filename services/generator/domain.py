"""What the generator is asked for and what it makes, without the wire and without a job around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from services.common.dataset import DatasetClass, DatasetManifest, Split
from services.common.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError, NotFoundError

JOB_KIND = "generation"
"""Kind of the generator's jobs."""
LEARNED_FLOOR = 20
"""Fewest training wafers of a class that a learned generator can be taught on."""
MAX_COUNT = 1_000_000
"""Most wafers to make of one class."""
MAX_SEED = 2**32 - 1
"""Largest seed."""
PREVIEW_KIND = "preview"
"""Kind of events with wafers in them."""
EDGE_PATTERNS = ("Edge-Loc", "Edge-Ring")
"""Patterns that hang on the edge: shifted, they would be another pattern."""


@dataclass(frozen=True, slots=True)
class VariationOptions:
    """What was asked for; None takes the default that is legal for the class's pattern.

    Attributes:
        rotation_degrees: Largest rotation to either side, 0 to 180.
        shear: Largest shear, as a share of the wafer, 0 to 0.3.
        horizontal_mirror: Whether wafers may be mirrored left to right.
        vertical_mirror: Whether wafers may be mirrored top to bottom.
        shift: Largest shift of the pattern, as a share of the wafer's radius, 0 to 0.2.
        die_noise: Share of dies whose result is flipped at random, 0 to 0.2.
        strength: Largest change of the pattern's strength, 0 to 0.5: the share of its failed dies that pass, or of its
            passed dies that fail.
        handedness: Whether the pattern tells left from right, as a swirl does; nothing is mirrored then.
    """

    rotation_degrees: float | None = None
    shear: float | None = None
    horizontal_mirror: bool | None = None
    vertical_mirror: bool | None = None
    shift: float | None = None
    die_noise: float | None = None
    strength: float | None = None
    handedness: bool | None = None


VARIATION_RANGES: Mapping[str, float] = {
    "rotation_degrees": 180.0,
    "shear": 0.3,
    "shift": 0.2,
    "die_noise": 0.2,
    "strength": 0.5,
}
"""Largest value of each numeric option; the smallest is 0."""


@dataclass(frozen=True, slots=True)
class LearnedOptions:
    """What was asked for of a learned generator.

    Attributes:
        steps: Steps of teaching, 1 to 100,000; None: chosen by the number of wafers.
    """

    steps: int | None = None


@dataclass(frozen=True, slots=True)
class ClassRequest:
    """What to make of one class.

    Attributes:
        class_id: Stable id of the class.
        count: Wafers to make, 1 to 1,000,000.
        method: How to make them.
    """

    class_id: str
    count: int
    method: VariationOptions | LearnedOptions


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One job.

    Attributes:
        dataset_id: Data set version whose training wafers are the parents.
        classes: What to make, one entry a class.
        seed: Seed of everything random.
        prove: Whether to teach a classifier with and without the wafers made, and tell what they change.
    """

    dataset_id: str
    classes: tuple[ClassRequest, ...]
    seed: int = 0
    prove: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads."""
        return {
            "dataset_id": self.dataset_id,
            "seed": self.seed,
            "prove": self.prove,
            "classes": [
                {
                    "class_id": each.class_id,
                    "count": each.count,
                    "method": "learned" if isinstance(each.method, LearnedOptions) else "variations",
                    "options": asdict(each.method),
                }
                for each in self.classes
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationSpec:
        """Reads what `to_json` made."""
        methods = {"learned": LearnedOptions, "variations": VariationOptions}
        return cls(
            dataset_id=data["dataset_id"],
            seed=data["seed"],
            prove=data.get("prove", False),
            classes=tuple(
                ClassRequest(each["class_id"], each["count"], methods[each["method"]](**each["options"]))
                for each in data["classes"]
            ),
        )


@dataclass(frozen=True, slots=True)
class Realism:
    """How generated wafers compare with real ones; see `realism.RealismMeter` for each figure.

    None where it cannot be measured: too few wafers, or a single class, from which nothing can be told apart.
    """

    nearest_distance: float
    nearest_distance_real: float
    copied_share: float
    coverage: float
    fail_fraction: float
    fail_fraction_real: float
    radial_profile_difference: float
    precision: float | None = None
    recall: float | None = None
    frechet_distance: float | None = None
    frechet_distance_real: float | None = None
    recognised_share: float | None = None
    recognised_share_real: float | None = None


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """What was made of one class.

    Attributes:
        class_id: Stable id of the class.
        count: Wafers made.
        parents: Wafers of the class that they were made from.
        rejected: Wafers made and thrown out because they failed a check.
        realism: How true they are to the class.
    """

    class_id: str
    count: int
    parents: int
    rejected: int
    realism: Realism


@dataclass(frozen=True, slots=True)
class Proof:
    """What generated wafers change in a classifier; see `services.generator.proof`.

    Attributes:
        without: Mean macro-F1 over the draws, taught with real wafers alone.
        with_generated: The same, taught with generated wafers as well.
        difference: Mean paired difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
        judged_wafers: Real wafers that judged, of lots set aside.
        judged_lots: Their lots.
    """

    without: float
    with_generated: float
    difference: float
    low: float
    high: float
    judged_wafers: int
    judged_lots: int


@dataclass(frozen=True, slots=True)
class GenerationOutcome:
    """What a job made.

    Attributes:
        dataset_id: Data set version with the generated wafers.
        classes: One entry a class, in the order asked for.
        seconds: Wall time of the attempt, seconds.
        peak_memory_bytes: Peak resident memory of the attempt, bytes.
        proof: What the wafers change in a classifier, where that was asked for.
    """

    dataset_id: str
    classes: tuple[ClassOutcome, ...]
    seconds: float
    peak_memory_bytes: int
    proof: Proof | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationOutcome:
        """Reads what `to_json` made."""
        classes = tuple(ClassOutcome(**{**each, "realism": Realism(**each["realism"])}) for each in data["classes"])
        proof = Proof(**data["proof"]) if data.get("proof") else None
        return cls(**{**data, "classes": classes, "proof": proof})


def check_spec(spec: GenerationSpec) -> None:
    """Checks the values of a request alone.

    Raises:
        InvalidArgumentError: With a violation for each value out of range.
    """
    wrong: list[FieldViolation] = []
    if not 0 <= spec.seed <= MAX_SEED:
        wrong.append(FieldViolation("generation_job.seed", f"Expected 0 to {MAX_SEED}. Received: {spec.seed}."))
    if not spec.classes:
        wrong.append(FieldViolation("generation_job.classes", "Expected at least one entry. Received: none."))
    seen: set[str] = set()
    for index, each in enumerate(spec.classes):
        path = f"generation_job.classes[{index}]"
        if not each.class_id or each.class_id in seen:
            text = f"Expected a class id that no other entry has. Received: {each.class_id!r}."
            wrong.append(FieldViolation(f"{path}.class_id", text))
        seen.add(each.class_id)
        if not 1 <= each.count <= MAX_COUNT:
            wrong.append(FieldViolation(f"{path}.count", f"Expected 1 to {MAX_COUNT}. Received: {each.count}."))
        wrong.extend(_wrong_options(each.method, path))
    _raise_if(wrong)


def check_against(spec: GenerationSpec, manifest: DatasetManifest) -> None:
    """Checks a request against the data set version that it names.

    Raises:
        NotFoundError: A class is not in it.
        InvalidArgumentError: A setting is not legal for a class's pattern.
        FailedPreconditionError: A class has too few training wafers, or a proof has no wafers that judge.
    """
    wrong: list[FieldViolation] = []
    for index, each in enumerate(spec.classes):
        class_ = class_of(manifest.classes, each.class_id)
        if isinstance(each.method, VariationOptions) and class_.pattern in EDGE_PATTERNS and each.method.shift:
            text = (
                f"Expected 0 or nothing: shifted off the edge, {class_.pattern} would be another pattern. "
                f"Received: {each.method.shift}."
            )
            wrong.append(FieldViolation(f"generation_job.classes[{index}].variations.shift", text))
    _raise_if(wrong)
    for each in spec.classes:
        check_parents(each, class_of(manifest.classes, each.class_id), manifest.counts[each.class_id][Split.TRAIN])
    if spec.prove:
        _check_judges(spec, manifest)


def _check_judges(spec: GenerationSpec, manifest: DatasetManifest) -> None:
    """Checks that the generated classes, and two at least, have wafers in lots set aside, which judge."""
    judged = {name for name, sides in manifest.counts.items() if sides[Split.TUNE] + sides[Split.TEST]}
    lacking = [
        class_of(manifest.classes, each.class_id).display_name for each in spec.classes if each.class_id not in judged
    ]
    if lacking or len(judged) < 2:
        raise FailedPreconditionError(
            "Expected wafers of each generated class, and of at least two classes, in lots set aside: they judge "
            f"whether generated wafers help. Received none of {', '.join(map(repr, lacking)) or 'a second class'}. Add "
            "wafers of other lots, or generate without the proof.",
            reason="NOTHING_TO_JUDGE",
        )


def check_parents(request: ClassRequest, class_: DatasetClass, parents: int) -> None:
    """Checks that a class has the training wafers that a method needs.

    Raises:
        FailedPreconditionError: It has too few.
    """
    learned = isinstance(request.method, LearnedOptions)
    needed = LEARNED_FLOOR if learned else 1
    if parents >= needed:
        return
    instead = "Add wafers or use variations instead." if learned and parents else "Add wafers to the class."
    raise FailedPreconditionError(
        f"Expected at least {needed} training wafers of class {class_.display_name!r} for "
        f"{'a learned generator' if learned else 'variations'}. Received: {parents}. {instead}",
        subject=request.class_id,
        reason="TOO_FEW_WAFERS",
        metadata={"class_id": request.class_id, "wafers": str(parents), "needed": str(needed)},
    )


def class_of(classes: Sequence[DatasetClass], class_id: str) -> DatasetClass:
    """Returns the class with an id.

    Raises:
        NotFoundError: There is none.
    """
    for each in classes:
        if each.class_id == class_id:
            return each
    raise NotFoundError("class", class_id)


def _wrong_options(method: VariationOptions | LearnedOptions, path: str) -> list[FieldViolation]:
    """Returns a violation for each option out of range."""
    if isinstance(method, LearnedOptions):
        if method.steps is None or 1 <= method.steps <= 100_000:
            return []
        return [FieldViolation(f"{path}.learned.steps", f"Expected 1 to 100000. Received: {method.steps}.")]
    wrong = []
    for field in fields(method):
        value, highest = getattr(method, field.name), VARIATION_RANGES.get(field.name)
        # Written so that NaN is out of range, too.
        if value is not None and highest is not None and not 0 <= value <= highest:
            text = f"Expected 0 to {highest:g}. Received: {value}."
            wrong.append(FieldViolation(f"{path}.variations.{field.name}", text))
    if method.handedness:
        for name in ("horizontal_mirror", "vertical_mirror"):
            if getattr(method, name):
                text = "Expected false or nothing: a mirrored wafer of a class with handedness is of another class."
                wrong.append(FieldViolation(f"{path}.variations.{name}", f"{text} Received: true."))
    return wrong


def _raise_if(wrong: Sequence[FieldViolation]) -> None:
    if wrong:
        text = " ".join(f"{each.field}: {each.description}" for each in wrong)
        raise InvalidArgumentError(f"The settings are wrong. {text}", violations=wrong)
