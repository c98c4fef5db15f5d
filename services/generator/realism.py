"""How true generated wafers are to the real wafers of their class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.preprocessing import planes_of
from services.common.wafer_map import FAIL, NO_DIE
from services.common.wafer_set import GridSequence
from services.generator.domain import Realism
from services.generator.embedding import WaferEmbedding
from services.generator.likeness import frechet_distance, precision_and_recall
from services.generator.real_wafers import even_places
from services.generator.recognition import Recogniser

SIDE = 32
"""Side of the grid on which fail maps are compared, cells."""
MOST_COMPARED = 2000
"""Most wafers of each side that are compared with one another."""
MOST_EMBEDDED = 500
"""Most wafers of each side that are compared by their embeddings."""
_RINGS = 16
_FRACTION_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Judges:
    """What looks at generated wafers as trained networks see them.

    Attributes:
        embedding: The shipped wafer embedding.
        recogniser: Classifier taught on the real wafers of all classes; None with a single class.
        class_number: Number of the class in the classifier.
    """

    embedding: WaferEmbedding
    recogniser: Recogniser | None = None
    class_number: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a meter sees in each of n wafers.

    Attributes:
        copies: bool (n,), whether it equals a real one die by die.
        fractions: float64 (n,), its share of failed dies.
    """

    copies: NDArray[np.bool_]
    fractions: NDArray[np.float64]

    def put(self, places: NDArray[np.intp], other: Look) -> None:
        """Takes over what was seen in the wafers that came into the places of others."""
        self.copies[places], self.fractions[places] = other.copies, other.fractions


class RealismMeter:
    """Compares generated wafers with real ones while they stream by, in flat memory.

    Args:
        real: Real wafers of the class, at least one.
        expected: Generated wafers that will come; every one counts for fractions and copies, a sample of at most
            2,000 for distances, and one of 500 for what the judges say.
        judges: What looks at them as trained networks do. None: nothing does, and its figures are None.
    """

    def __init__(self, real: Sequence[NDArray[np.uint8]], expected: int, judges: Judges | None = None) -> None:
        self._real = real
        self._judges = judges
        sample = [real[index] for index in even_places(len(real), MOST_COMPARED)]
        self._real_maps, self._real_profile = maps_and_profile(sample)
        fractions = [fail_fraction(grid) for grid in real]
        self._real_fraction = float(np.mean(fractions))
        slack = (max(fractions) - min(fractions)) / 4 + _FRACTION_SLACK
        self._usual = (min(fractions) - slack, max(fractions) + slack)
        self._real_keys = {content_key(grid) for grid in real}
        self._real_digests = np.unique(fail_digests(GridSequence.of(real)))
        # By chance: wafers come parent after parent, and even steps would meet the same few parents again and again.
        chosen = np.random.default_rng(expected).choice(expected, min(expected, MOST_COMPARED), replace=False)
        self._sample = np.sort(chosen)
        self._kept: list[NDArray[np.uint8]] = []
        self._embeddings: NDArray[np.float32] | None = None
        self._fractions = 0.0
        self._copies = 0
        self._seen = 0

    def is_copy(self, grid: NDArray[np.uint8]) -> bool:
        """Says whether a wafer equals a real one die by die."""
        return content_key(grid) in self._real_keys

    def copies(self, grids: GridSequence) -> NDArray[np.intp]:
        """Returns the positions of wafers that equal a real one die by die."""
        suspects = np.flatnonzero(np.isin(fail_digests(grids), self._real_digests))
        return suspects[[self.is_copy(grids[index]) for index in suspects.tolist()]]

    def look(self, grids: GridSequence) -> Look:
        """Looks at generated wafers."""
        look = Look(np.zeros(len(grids), bool), np.empty(len(grids)))
        look.copies[self.copies(grids)] = True
        for places, dies in grids.runs():
            look.fractions[places] = fail_fractions(dies)
        return look

    def failing(
        self, grids: Sequence[NDArray[np.uint8]], *, recognise: bool, look: Look | None = None
    ) -> NDArray[np.intp]:
        """Returns the positions of wafers that fail a check.

        They equal a real one; or their fail fraction lies outside that of the real ones by more than a quarter of its
        range and 0.02; or the classifier is less sure of their class than of 19 out of 20 real ones, which it judged
        without their lots.

        Args:
            grids: Generated wafers.
            recognise: Whether to ask the classifier, where there is one: it looks at hundreds of wafers a second.
            look: What `look` saw in them; None: it looks now.
        """
        look = look or self.look(GridSequence.of(grids))
        wrong = look.copies | (look.fractions < self._usual[0]) | (look.fractions > self._usual[1])
        judges = self._judges
        if recognise and judges and judges.recogniser:
            own = judges.recogniser.probabilities(judges.embedding.embed(grids))[:, judges.class_number]
            wrong |= own < judges.recogniser.floors[judges.class_number]
        return np.flatnonzero(wrong)

    def add(self, grids: Sequence[NDArray[np.uint8]], look: Look | None = None) -> None:
        """Takes the next generated wafers.

        Args:
            grids: Generated wafers.
            look: What `look` saw in them; None: it looks now.
        """
        shared = GridSequence.of(grids)
        look = look or self.look(shared)
        self._fractions += float(look.fractions.sum())
        self._copies += int(look.copies.sum())
        start, stop = np.searchsorted(self._sample, [self._seen, self._seen + len(shared)])
        # Copies, because a view would keep all the wafers that share its memory.
        self._kept += [shared[index].copy() for index in (self._sample[start:stop] - self._seen).tolist()]
        self._seen += len(shared)
        self._embeddings = None

    def result(self) -> Realism:
        """Returns the figures over all wafers taken, of which there must be one at least.

        Distances are shares of the cells of a 32 x 32 grid in which two fail maps differ. `coverage` is the share of
        real wafers that are the nearest one of some generated wafer; the profile is the mean fail share in 16 rings.
        Precision, recall and the Frechet distance are those of `likeness`; that of the real wafers is the distance
        between their two halves, half as many on each side, and so an upper guide.
        """
        made, profile = maps_and_profile(self._kept)
        distances = hamming_distances(made, self._real_maps)
        return Realism(
            nearest_distance=float(np.median(distances.min(axis=1))),
            nearest_distance_real=_distance_among(self._real_maps),
            copied_share=self._copies / self._seen,
            coverage=len(np.unique(distances.argmin(axis=1))) / len(self._real_maps),
            fail_fraction=self._fractions / self._seen,
            fail_fraction_real=self._real_fraction,
            radial_profile_difference=float(np.abs(profile - self._real_profile).max()),
            **self._judged(),
        )

    def embeddings(self) -> NDArray[np.float32]:
        """Returns the embeddings (n, 384) of the sample of 500 generated wafers taken; judges must be there."""
        assert self._judges is not None  # noqa: S101 - said above
        if self._embeddings is None:
            self._embeddings = self._embedded(self._judges)
        return self._embeddings

    def _embedded(self, judges: Judges) -> NDArray[np.float32]:
        return judges.embedding.embed([self._kept[place] for place in even_places(len(self._kept), MOST_EMBEDDED)])

    def _judged(self) -> dict[str, float]:
        """Returns what the judges say, where there are any and wafers enough."""
        judges = self._judges
        if judges is None:
            return {}
        figures: dict[str, float] = {}
        made = self.embeddings()
        real = judges.embedding.embed([self._real[place] for place in even_places(len(self._real), MOST_EMBEDDED)])
        if min(len(real), len(made)) >= 2:
            figures["precision"], figures["recall"] = precision_and_recall(real, made)
            figures["frechet_distance"] = frechet_distance(real, made)
        if len(real) >= 4:
            mixed = np.random.default_rng(0).permutation(real)
            figures["frechet_distance_real"] = frechet_distance(mixed[::2], mixed[1::2])
        if judges.recogniser is not None:
            answers = judges.recogniser.probabilities(made).argmax(axis=1)
            figures["recognised_share"] = float((answers == judges.class_number).mean())
            figures["recognised_share_real"] = judges.recogniser.recognised[judges.class_number]
        return figures


def content_key(grid: NDArray[np.uint8]) -> bytes:
    """Returns bytes that are equal exactly for equal die grids."""
    return b"%d:" % grid.shape[0] + grid.tobytes()


def fail_digests(grids: GridSequence) -> NDArray[np.uint64]:
    """Returns a number for each of n die grids that is equal for equal fails, and hardly ever for others."""
    digests = np.empty(len(grids), np.uint64)
    for places, dies in grids.runs():
        packed = np.packbits(dies.reshape(len(dies), -1) == FAIL, axis=1)
        words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
        factors = np.random.default_rng(words.shape[1]).integers(0, 2**64, words.shape[1], np.uint64) | np.uint64(1)
        # High bits of a product depend on all bits of its factors; the sum wraps around.
        digests[places] = ((words ^ (words >> np.uint64(29))) * factors).sum(axis=1) + np.uint64(dies.shape[1])
    return digests


def fail_fractions(dies: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns the share of failed dies of each of (n, rows, columns) wafers, 0 to 1."""
    flat = dies.reshape(len(dies), -1)
    failed, valid = (
        np.bitwise_count(np.packbits(plane, axis=1)).sum(axis=1, dtype=np.int64) for plane in (flat == FAIL, flat)
    )
    return np.asarray(failed / np.maximum(valid, 1))


def fail_fraction(grid: NDArray[np.uint8]) -> float:
    """Returns the share of a wafer's dies that failed, 0 to 1."""
    return int(np.count_nonzero(grid == FAIL)) / max(1, int(np.count_nonzero(grid != NO_DIE)))


def maps_and_profile(grids: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Returns fail maps and the mean radial profile of wafers.

    Returns:
        (n, 1024) maps of 0 and 1, cells of a 32 x 32 grid in which half of the dies or more failed; and the mean fail
        share (16,) in rings of equal width from the centre to the rim.
    """
    planes = planes_of(grids, SIDE)
    failing = planes[..., 1] * 2 >= np.maximum(planes[..., 0], 1e-6)
    return np.asarray(failing.reshape(len(grids), -1), np.float32), _radial_profile(planes)


def hamming_distances(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns (n, m) shares of cells in which maps of 0 and 1 differ."""
    both = one @ other.T
    differing: NDArray[np.float32] = one.sum(1)[:, None] + other.sum(1)[None, :] - 2 * both
    return differing / np.float32(one.shape[1])


def _distance_among(maps: NDArray[np.float32]) -> float:
    """Returns the median distance of a map to its nearest other one, 0 for a single map."""
    if len(maps) < 2:
        return 0.0
    distances = hamming_distances(maps, maps)
    np.fill_diagonal(distances, np.inf)
    return float(np.median(distances.min(axis=1)))


def _radial_profile(planes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the mean fail share in 16 rings of equal width of wafers (n, 32, 32, 2)."""
    summed = planes.sum(axis=0, dtype=np.float64)
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    ring = np.minimum((np.hypot(axis[:, None], axis[None, :]) * _RINGS).astype(np.intp), _RINGS - 1).reshape(-1)
    valid, failed = (np.bincount(ring, summed[..., plane].reshape(-1), _RINGS) for plane in (0, 1))
    return np.asarray(failed / np.maximum(valid, 1e-9))
