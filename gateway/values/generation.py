"""Generations: requests, runs, events, results."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

from gateway.values.common import Problem
from gateway.values.jobs import JobState, JobStateChanged
from services.common.wafer_map import WaferMap


class Method(StrEnum):
    """How wafers are generated."""

    VARIATIONS = "variations"
    """Rotated, mirrored, sheared, shifted copies (`ai_use` false)."""
    LEARNED = "learned"
    """From a generator taught on the class (`ai_use` true); needs 20 wafers."""


@dataclass(frozen=True, slots=True)
class VariationOptions:
    """Settings of variations; None takes what is legal for the class's pattern.

    Attributes:
        rotation_degrees: Largest rotation to either side, 0 to 180.
        shear: Largest shear, share of the wafer, 0 to 0.3.
        horizontal_mirror: Whether wafers may be mirrored left to right.
        vertical_mirror: Whether wafers may be mirrored top to bottom.
        shift: Largest shift, share of the wafer, 0 to 0.2.
        die_noise: Share of dies flipped at random, 0 to 0.2.
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


VARIATION_LIMITS: Final = {"rotation_degrees": 180, "shear": 0.3, "shift": 0.2, "die_noise": 0.2, "strength": 0.5}
"""Largest value of each of these settings that is a number; all begin at 0."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to make of one class.

    Attributes:
        class_id: The class.
        count: Wafers to make, 1 to 1,000,000.
        method: How.
        variations: Settings of variations.
        steps: Steps of teaching a learned generator; None lets it choose.
    """

    class_id: str
    count: int
    method: Method = Method.VARIATIONS
    variations: VariationOptions = field(default_factory=VariationOptions)
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class SimulatedClass:
    """Wafers to simulate of one pattern or of several on one wafer.

    Attributes:
        patterns: Names of the patterns.
        count: Wafers, 1 to 100,000.
        strength: Range of a factor on the share of dies that the patterns kill, 0.1 to 1; None leaves it alone.
    """

    patterns: tuple[str, ...]
    count: int
    strength: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Simulation:
    """What to simulate.

    Attributes:
        classes: The classes.
        seed: Seed of everything random.
        wafers_per_lot: Wafers a lot, 1 to 25; 0 means 5.
        rows: Die rows, 8 to 300; 0 draws products of many sizes.
        columns: Die columns; 0 exactly when `rows` is 0.
        sides: Range of the mean of rows and columns, 8 to 300; None takes the simulator's own.
        aspect: Range of rows / columns, 0.25 to 4; None likewise.
        background_fail_rate: Range of the share of dies that fail without a pattern, 0 to 0.5; None likewise.
    """

    classes: tuple[SimulatedClass, ...]
    seed: int = 0
    wafers_per_lot: int = 0
    rows: int = 0
    columns: int = 0
    sides: tuple[float, float] | None = None
    aspect: tuple[float, float] | None = None
    background_fail_rate: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Realism:
    """How generated wafers compare with the wafers of their class; all but the Frechet distances 0 to 1.

    Attributes:
        nearest_distance: Median distance of a generated wafer to its nearest real one.
        nearest_distance_real: Median distance of a real wafer to its nearest other real one.
        copied_share: Share of generated wafers that copy a real one exactly.
        coverage: Share of real wafers that are the nearest one of some generated wafer.
        fail_fraction: Mean fail fraction of the generated wafers.
        fail_fraction_real: Mean fail fraction of the real ones.
        radial_profile_difference: Largest difference between the mean radial fail profiles.
        precision: Share of generated wafers that lie among the real ones; this and what follows None if not measured.
        recall: Share of real wafers that lie among the generated ones.
        frechet_distance: Frechet distance between the embeddings of generated and real wafers.
        frechet_distance_real: Frechet distance between two halves of the real wafers.
        recognised_share: Share of generated wafers in which a classifier taught on real wafers sees their class.
        recognised_share_real: The same share of the real wafers, each judged without its lot.
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
class ClassResult:
    """What was made of one class.

    Attributes:
        class_id: The class.
        count: Wafers made.
        parents: Wafers that they were made from.
        rejected: Wafers thrown out because they failed a check.
        realism: How true they are to the class.
    """

    class_id: str
    count: int
    parents: int
    rejected: int
    realism: Realism


@dataclass(frozen=True, slots=True)
class Proof:
    """What generated wafers change in the macro-F1 of a classifier, judged by real wafers of lots set aside.

    Attributes:
        without: Mean macro-F1 taught with real wafers alone.
        with_generated: The same, taught with generated wafers as well.
        difference: Mean paired difference.
        low: Lower end of its 95 % interval.
        high: Upper end.
        judged_wafers: Wafers that judged.
        judged_lots: Their lots.
    """

    without: float
    with_generated: float
    difference: float
    low: float
    high: float
    judged_wafers: int
    judged_lots: int

    @property
    def verdict(self) -> Literal["helps", "harms", "unclear"]:
        """Whether the wafers help: only an interval on one side of 0 says so."""
        if self.low > 0:
            return "helps"
        return "harms" if self.high < 0 else "unclear"


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What a succeeded generation made.

    Attributes:
        dataset_id: Data set version with the wafers.
        classes: One row a class.
        seconds: Wall time.
        peak_memory_bytes: Peak resident memory.
        proof: What the wafers change in a classifier, where that was asked for.
    """

    dataset_id: str
    classes: tuple[ClassResult, ...]
    seconds: float
    peak_memory_bytes: int
    proof: Proof | None = None


@dataclass(frozen=True, slots=True)
class GenerationRun:
    """One generation for a project.

    Attributes:
        run_id: Id of the job, as in `generationJobs/{run_id}`.
        project_id: Its project; "" for generations started elsewhere.
        dataset_id: Data set version whose training wafers are the parents.
        requests: What was asked for.
        seed: Seed of everything random.
        state: Where it stands.
        progress: Share done, 0 to 1.
        queue_position: Generations that start before this one.
        device: Device it runs on; "" before it runs.
        created_at: When a person started it.
        started_at: When it first ran.
        ended_at: When it ended.
        problem: Why it failed.
        result: What it made, when it succeeded.
        accepted: Whether its wafers were added to their classes.
    """

    run_id: str
    project_id: str
    dataset_id: str
    requests: tuple[GenerationRequest, ...]
    seed: int
    state: JobState
    progress: float
    queue_position: int
    device: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    problem: Problem | None = None
    result: GenerationResult | None = None
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class GenerationProgress:
    """Wafers were made, or the generator learned on.

    Attributes:
        sequence: Number of the event in its job, from 1.
        when: When it happened.
        class_id: Class at work; "" while proving.
        stage: `learning`, `making`, `checking` or `proving`.
        done: Steps learned, wafers made or draws proved so far.
        total: Steps to learn, wafers to make or draws to prove.
        progress: Share of the whole job done, 0 to 1.
        loss: Loss while learning; 0 otherwise.
        device: Device in use.
    """

    sequence: int
    when: datetime
    class_id: str
    stage: str
    done: int
    total: int
    progress: float
    loss: float
    device: str


@dataclass(frozen=True, slots=True, eq=False)
class GenerationPreview:
    """Some of the wafers made so far.

    Attributes:
        sequence: Number of the event in its job, from 1.
        when: When it happened.
        class_id: Class of the wafers.
        maps: Up to 16 wafers.
    """

    sequence: int
    when: datetime
    class_id: str
    maps: tuple[WaferMap, ...]


GenerationEvent = JobStateChanged | GenerationProgress | GenerationPreview
"""What `Studio.generation.watch` yields."""
