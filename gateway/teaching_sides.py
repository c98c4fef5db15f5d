"""Which wafers teach and which judge, for each type of project; for the portal and for the command line."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.values import Task
from services.common.splitting import Split, split_report


@dataclass(frozen=True, slots=True)
class Sides:
    """Who teaches and who judges.

    Attributes:
        sides: Side of each wafer, in the order given.
        warnings: Sentences about classes that a side has to do without, English, with the classes as they were given.
    """

    sides: list[Split]
    warnings: tuple[str, ...]


def sides_of(
    task: Task, shown: Sequence[Sequence[str]], lots: Sequence[str], digests: Sequence[str], normal: str, seed: int
) -> Sides:
    """Puts each lot on one side.

    Of several patterns on a wafer the rarest decides, so that each pattern gets its share on each side. Where only
    normal wafers teach, all others judge unless normal wafers of their lot teach; then they do neither.

    Args:
        task: What the model shall tell.
        shown: Classes of each wafer, at least one.
        lots: Lot of each wafer, "" when unknown.
        digests: Content address of each wafer.
        normal: The class of wafers without a pattern, "" when there is none.
        seed: Another seed, another split.
    """
    if task is Task.NORMAL:
        return _of_normal([classes[0] == normal for classes in shown], lots, digests, seed)
    if task is Task.SINGLE:
        report = split_report([classes[0] for classes in shown], lots, seed=seed, digests=digests)
        return Sides([Split(str(side)) for side in report.sides], report.warnings)
    wafers = Counter(each for classes in shown for each in classes)
    rarest = [min(classes, key=lambda each: (wafers[each], each)) for classes in shown]
    report = split_report(rarest, lots, seed=seed, digests=digests)
    sides = [Split(str(side)) for side in report.sides]
    return Sides(sides, tuple(_missing(shown, sides, wafers)))


def _missing(shown: Sequence[Sequence[str]], sides: Sequence[Split], wafers: Counter[str]) -> list[str]:
    """Returns a sentence for each class that a side has to do without."""
    counted = Counter((each, side) for classes, side in zip(shown, sides, strict=True) for each in classes)
    sentences = []
    for each in sorted(wafers):
        without = [side.value for side in Split if not counted[each, side]]
        if without:
            sentences.append(
                f"Class {each!r} has {wafers[each]} wafers: none of them for {' or '.join(without)}. "
                f"Add wafers of this class from other lots to measure it."
            )
    return sentences


def _of_normal(normal: Sequence[bool], lots: Sequence[str], digests: Sequence[str], seed: int) -> Sides:
    """Splits the normal wafers; lots without a normal one are shared between tuning and the locked test."""
    chosen = [index for index, each in enumerate(normal) if each]
    report = split_report(
        ["normal"] * len(chosen), [lots[i] for i in chosen], seed=seed, digests=[digests[i] for i in chosen]
    )
    keys = [f"lot:{lot}" if lot else f"sha:{digest}" for lot, digest in zip(lots, digests, strict=True)]
    side_of = {keys[index]: Split(str(side)) for index, side in zip(chosen, report.sides, strict=True)}
    others = Counter(key for key in keys if key not in side_of)
    held = Counter[Split]()
    for key in sorted(others, key=lambda each: hashlib.sha256(f"{seed}\0{each}".encode()).digest()):
        side = min((Split.TEST, Split.TUNE), key=lambda each: held[each])
        held[side] += others[key]
        side_of[key] = side
    warnings = [sentence.replace("Class 'normal' has", "The normal class has") for sentence in report.warnings]
    idle = sum(not each and side_of[key] is Split.TRAIN for each, key in zip(normal, keys, strict=True))
    if idle:
        warnings.append(
            f"{idle} wafers of other classes come from lots whose normal wafers teach: they do not measure. "
            "Add wafers of other lots to measure more."
        )
    return Sides([side_of[key] for key in keys], tuple(warnings))
