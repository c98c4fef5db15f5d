"""Pages of checks: unknown patterns, generated wafers, label noise."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.protocols.markdown import Result, joined, points, repeat, share, table, title_of, with_spread
from services.trainer.protocols.unknown import GRAPH


def unknown_page(results: Sequence[Result]) -> str:
    """P4."""
    parts = [
        "# Unknown patterns: P4",
        "Each class in turn is left out of teaching; its wafers in the locked lots are the unknown ones, the other "
        "test wafers the known ones. AUROC of each score, mean and standard deviation over seeds. The first row is "
        "what is served; the others are the scores of the literature on the same embeddings.",
    ]
    for each in results:
        rows = [
            [
                f"**{name}**" if name == GRAPH else name,
                with_spread(score["mean"], score["spread"], len(each["seeds"])),
                f"{score['worst']:.3f}",
                *(
                    with_spread(score["classes"][left]["mean"], score["classes"][left]["spread"], len(each["seeds"]))
                    for left in each["classes"]
                ),
            ]
            for name, score in each["scores"].items()
        ]
        parts += [f"## {title_of(each)}", table(["score", "mean", "worst class", *each["classes"]], rows)]
        noticed = [
            [
                left,
                str(next(run["unknown_wafers"] for run in each["runs"] if run["left_out"] == left)),
                share(_mean(each, left, "noticed")),
                share(_mean(each, left, "false_alarms")),
            ]
            for left in each["classes"]
        ]
        parts += [
            "At the threshold that the tune lots fixed:",
            table(["left out", "unknown wafers", "called unknown", "known wafers called unknown"], noticed),
        ]
    return joined(*parts, repeat(results))


def _mean(result: Result, left_out: str, name: str) -> float:
    values = [run[name] for run in result["runs"] if run["left_out"] == left_out]
    return float(sum(values) / len(values))


def generated_page(results: Sequence[Result]) -> str:
    """P6."""
    parts = [
        "# Generated wafers: P6",
        "Each draw is taught twice, with its real wafers alone and with generated ones as well, and judged by the same "
        "real wafers of locked lots. Differences of F1 in points: mean over draws and its 95 % interval. An interval "
        "with 0 in it is no gain.",
    ]
    for each in results:
        others = f", {each['others']} real wafers of every other class" if each["others"] else ""
        parts += [
            f"## {title_of(each)}",
            f"{each['count']} wafers generated of each of {', '.join(each['targets'])}{others}; {each['draws']} draws.",
            table(
                ["made by", "real wafers a class", "macro-F1 without", "macro-F1", "generated classes", "says"],
                [_generated_row(score) for score in each["scores"]],
            ),
            "By class:",
            table(
                ["class", *(f"{score['method']}, {score['wafers_per_class']}" for score in each["scores"])],
                [
                    [name, *(_difference(score["class_f1"][name]) for score in each["scores"])]
                    for name in each["classes"]
                ],
            ),
        ]
    return joined(*parts, repeat(results))


def _generated_row(score: Result) -> list[str]:
    whole, targets = score["macro_f1"], score["targets_f1"]
    return [
        score["method"],
        str(score["wafers_per_class"]),
        f"{whole['without']:.3f}",
        _difference(whole),
        _difference(targets),
        verdict(targets["interval"]),
    ]


def verdict(interval: Sequence[float] | None) -> str:
    """Returns what an interval of a difference says."""
    if interval is None:
        return "one draw says nothing"
    if interval[0] > 0:
        return "helps"
    return "harms" if interval[1] < 0 else "no difference shown"


def _difference(values: Result) -> str:
    interval = values["interval"]
    shown = f" ({points(interval[0])} to {points(interval[1])})" if interval else ""
    return f"{points(values['difference'])}{shown}"


def label_noise_page(results: Sequence[Result]) -> str:
    """How many labels are wrong."""
    parts = [
        "# Label noise",
        "Exactly repeated wafers with different labels are counted; the rest is estimated by confident learning "
        "(Northcutt, Jiang, Chuang, JAIR 70 (2021)) with a classifier on embeddings that never saw the lot of the "
        "wafer it is asked about. The ceiling is the F1 that a classifier which always tells the true class would get "
        "from these labels. An estimate and no bound: confident mistakes of the classifier lower it, mistakes that it "
        "shares with the labels raise it. The second half leaves out the lots whose labels pretraining saw.",
    ]
    for each in results:
        repeats, lots, unseen = each["repeats"], each["all_lots"], each["lots_unseen_by_pretraining"]
        rows = [
            [
                name,
                share(lots["class_wrong_share"][name]),
                f"{lots['class_ceiling'][name]:.3f}",
                share(unseen["class_wrong_share"][name]),
                f"{unseen['class_ceiling'][name]:.3f}",
            ]
            for name in each["classes"]
        ]
        rows.append(
            [
                "all, macro",
                share(lots["wrong_share"]),
                f"{lots['ceiling']:.3f}",
                share(unseen["wrong_share"]),
                f"{unseen['ceiling']:.3f}",
            ]
        )
        parts += [
            f"## {title_of(each)}",
            _repeats(repeats),
            table(
                ["class", "wrong labels", "ceiling of F1", "wrong labels, unseen lots", "ceiling, unseen lots"], rows
            ),
            f"The classifier's own macro-F1 out of lot: {lots['out_of_lot_macro_f1']:.3f}, on the unseen lots "
            f"{unseen['out_of_lot_macro_f1']:.3f}.",
        ]
    return joined(*parts, repeat(results))


def _repeats(repeats: Result) -> str:
    if not repeats["repeated"]:
        return (
            f"None of the {repeats['wafers']:,} wafers repeats another exactly: the set says nothing of its labels so."
        )
    pairs = ", ".join(f"{first} / {second} {count}" for first, second, count in repeats["pairs"][:5])
    return (
        f"{repeats['repeated']:,} of {repeats['wafers']:,} wafers are exact repeats, {repeats['groups']:,} different "
        f"ones. {repeats['contradicting']:,} of the repeats ({share(repeats['contradicting'] / repeats['repeated'])}), "
        f"in {repeats['contradicting_groups']:,} groups, contradict each other: at least {repeats['least_wrong']:,} "
        f"labels are wrong. Commonest pairs: {pairs or 'none'}."
    )
