"""A page a protocol: kept results to Markdown. Every figure stands in a result; nothing is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.trainer.protocols.markdown import code, joined, matrix, points, share, table, with_spread
from services.trainer.protocols.unknown import GRAPH

Result = Mapping[str, Any]


def title_of(result: Result) -> str:
    """Returns what a result is called."""
    return str(result.get("title") or result.get("backbone") or result["protocol"])


def full_page(results: Sequence[Result]) -> str:
    """P1, P5 and P7."""
    first = results[0]
    rows = [
        [
            title_of(each),
            f"{each['training_wafers']:,}",
            _score(each, "macro_f1"),
            _interval(each["runs"][0]["macro_f1_interval"]),
            _score(each, "accuracy"),
            f"{each['mean']['seconds']:.0f}",
        ]
        for each in results
    ]
    columns = ["taught", "wafers", "macro-F1", "95 % by lot, first seed", "accuracy", "seconds"]
    own = [each for each in results if not each.get("rival")]
    return joined(
        "# Full data: P1, P5 and P7",
        f"Taught on all training lots, judged by {first['test_wafers']:,} wafers of {first['test_lots']} locked lots "
        "(`split_by_lot`, seed 0). Ours is a whole training job, and what is scored is its exported file. Mean and "
        "standard deviation over seeds; the interval is a bootstrap over whole lots.",
        table(columns, rows),
        _recall_by_class(results),
        _accepted(own),
        _parity(own),
        f"## Confusion\n\n{title_of(first)}, seed {first['runs'][0]['seed']}; row the label, column the answer.",
        matrix(first["classes"], first["runs"][0]["confusion"], "label"),
        _repeat(results),
    )


def _score(result: Result, name: str) -> str:
    return with_spread(result["mean"][name], result["spread"][name], len(result["runs"]))


def _interval(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} to {values[1]:.3f}"


def _recall_by_class(results: Sequence[Result]) -> str:
    first = results[0]["runs"][0]
    rows = []
    for name in results[0]["classes"]:
        cells = [_mean_of([run["class_recall"][name] for run in each["runs"]]) for each in results]
        f1 = [_mean_of([run["class_f1"][name] for run in each["runs"]]) for each in results]
        cells = [f"{recall} ({value})" for recall, value in zip(cells, f1, strict=True)]
        low, high = first["class_recall_interval"][name]
        rows.append([name, str(first["class_wafers"][name]), *cells, f"{low:.2f} to {high:.2f}"])
    last = f"recall of {title_of(results[0])}, 95 % (Wilson)"
    return joined(
        "## Recall (F1) of each class", table(["class", "wafers", *(title_of(each) for each in results), last], rows)
    )


def _mean_of(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def _accepted(results: Sequence[Result]) -> str:
    rows = [
        [
            title_of(each),
            _score(each, "accepted_share"),
            _score(each, "accepted_error"),
            _score(each, "defects_accepted_share"),
            _score(each, "defects_accepted_error"),
            _score(each, "expected_calibration_error"),
        ]
        for each in results
    ]
    if not rows:
        return ""
    columns = ["taught", "accepted", "wrong of these", "accepted among called defects", "wrong of these", "ECE"]
    return joined(
        "## Accepted without a look (P5)",
        "The threshold was fixed on the tune lots. A wafer that is called unknown is not accepted.",
        table(columns, rows),
    )


def _parity(results: Sequence[Result]) -> str:
    if not results:
        return ""
    worst = max(run["parity_max_difference"] for each in results for run in each["runs"])
    wafers = min(run["parity_wafers"] for each in results for run in each["runs"])
    return joined(
        "## Parity (P7)",
        f"Largest difference between a probability of the exported ONNX graph and of the Keras model that was taught, "
        f"on all {wafers:,} test wafers of each job: {worst:.1g}. The same class is on top for every wafer, or the job "
        "fails.",
    )


def few_shot_page(results: Sequence[Result]) -> str:
    """P2."""
    first = results[0]
    sizes = sorted({score["wafers_per_class"] for each in results for score in each["scores"]})
    seen = [each for each in results if not each["new_classes"] or each.get("rival")]
    new = [each for each in results if each["new_classes"]]
    return joined(
        "# Few examples: P2",
        f"Wafers to teach are drawn from the training lots (of at most 500 a class), the judges are "
        f"{first['test_wafers']:,} wafers of {first['test_lots']} locked lots. Mean macro-F1 and standard deviation "
        f"over draws, seed {first['seed']}.",
        _few_shot_table("P2a: classes that pretraining has seen", seen, sizes),
        _few_shot_table("P2b: three classes that pretraining has not seen in real wafers", new, sizes),
        _new_classes(new, sizes),
        *(_few_shot_classes(each) for each in results if not each.get("rival")),
        _repeat(results),
    )


def _few_shot_table(heading: str, results: Sequence[Result], sizes: Sequence[int]) -> str:
    if not results:
        return ""
    rows = [[title_of(each), *_cells(each["scores"], sizes, "macro_f1")] for each in results]
    return joined(f"## {heading}", table(["taught", *(f"{size} a class" for size in sizes)], rows))


def _cells(scores: Sequence[Result], sizes: Sequence[int], name: str) -> list[str]:
    by_size = {score["wafers_per_class"]: score for score in scores}
    return [
        with_spread(by_size[size][name], by_size[size][f"{name}_spread"], by_size[size]["draws"])
        if size in by_size
        else ""
        for size in sizes
    ]


def _new_classes(results: Sequence[Result], sizes: Sequence[int]) -> str:
    if not results:
        return ""
    rows = []
    for each in results:
        rows.append([title_of(each), "mean", *_cells(each["scores"], sizes, "new_classes_f1")])
        by_size = {score["wafers_per_class"]: score for score in each["scores"]}
        for name in each["new_classes"]:
            rows.append(
                ["", name, *(f"{by_size[size]['class_f1'][name]:.2f}" if size in by_size else "" for size in sizes)]
            )
    return joined("### F1 of the new classes", table(["taught", "class", *(f"{size} a class" for size in sizes)], rows))


def _few_shot_classes(result: Result) -> str:
    rows = [
        [
            name,
            *(f"{score['class_recall'][name]:.2f} ({score['class_f1'][name]:.2f})" for score in result["scores"]),
        ]
        for name in result["classes"]
    ]
    last = result["scores"][-1]
    return joined(
        f"## {title_of(result)}: recall (F1) of each class",
        table(["class", *(f"{score['wafers_per_class']} a class" for score in result["scores"])], rows),
        f"Confusion with {last['wafers_per_class']} wafers a class, all {last['draws']} draws together; row the label.",
        matrix(result["classes"], last["confusion"], "label"),
    )


def ablation_page(results: Sequence[Result]) -> str:
    """What each part of pretraining is worth."""
    parts = [
        "# What each part of pretraining is worth",
        "The few-shot table of several weights, same draws, same judges.",
    ]
    for each in results:
        sizes = sorted({score["wafers_per_class"] for row in each["rows"] for score in row["scores"]})
        columns = ["pretrained on", *(f"{size} a class" for size in sizes)]
        parts += [f"## {title_of(each)}", table(columns, _ablation_rows(each, sizes, "macro_f1"))]
        if each["new_classes"]:
            parts += [f"F1 of {', '.join(each['new_classes'])} alone:"]
            parts += [table(columns, _ablation_rows(each, sizes, "new_classes_f1"))]
    return joined(*parts, _repeat(results))


def _ablation_rows(result: Result, sizes: Sequence[int], name: str) -> list[list[str]]:
    return [[row["name"], *_cells(row["scores"], sizes, name)] for row in result["rows"]]


def several_page(results: Sequence[Result]) -> str:
    """P3."""
    first = results[0]
    rows = [
        [
            title_of(each),
            f"{each['training_wafers']:,}",
            _score(each, "macro_f1"),
            _score(each, "exact_match"),
            _score(each, "accepted_share"),
            _score(each, "accepted_error"),
            f"{each['mean']['seconds']:.0f}",
        ]
        for each in results
    ]
    columns = ["taught", "wafers", "macro-F1", "exact match", "accepted", "wrong of these", "seconds"]
    by_count = [
        [title_of(each), *(share(_over_runs(each, "exact_by_count", count)) for count in _counts(first))]
        for each in results
    ]
    by_pattern = [
        [name, *(f"{_over_runs(each, 'class_recall', name):.3f} ({_f1(each, name):.3f})" for each in results)]
        for name in first["patterns"]
    ]
    weakest = sorted(first["runs"][0]["exact_by_combination"].items(), key=lambda each: each[1])[:8]
    return joined(
        "# Several patterns a wafer: P3",
        f"{first['combinations']} combinations of {len(first['patterns'])} patterns, judged by "
        f"{first['test_wafers']:,} locked wafers. Macro-F1 is the mean over the patterns, each a yes-or-no question; "
        "exact match the share of wafers whose whole set is right. MixedWM38 was balanced by a generative network: no "
        "evidence of accuracy in a factory.",
        table(columns, rows),
        joined("## Exact match by number of patterns", table(["taught", *_counts(first)], by_count)),
        joined("## Recall (F1) of each pattern", table(["pattern", *map(title_of, results)], by_pattern)),
        joined(
            f"## Weakest combinations of {title_of(first)}",
            table(["combination", "exact match"], [[name, share(value)] for name, value in weakest]),
        ),
        _repeat(results),
    )


def _counts(result: Result) -> list[str]:
    return sorted(result["runs"][0]["exact_by_count"])


def _over_runs(result: Result, table_name: str, name: str) -> float:
    values = [run[table_name][name] for run in result["runs"]]
    return float(sum(values) / len(values))


def _f1(result: Result, name: str) -> float:
    return _over_runs(result, "class_f1", name)


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
    return joined(*parts, _repeat(results))


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
    return joined(*parts, _repeat(results))


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
    return joined(*parts, _repeat(results))


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


def _repeat(results: Sequence[Result]) -> str:
    commands = [str(each["command"]) for each in results if each.get("command")]
    return joined("## Repeat it", code(commands)) if commands else ""


PAGES: Mapping[str, Callable[[Sequence[Result]], str]] = {
    "full": full_page,
    "few-shot": few_shot_page,
    "several": several_page,
    "unknown": unknown_page,
    "generated": generated_page,
    "label-noise": label_noise_page,
    "ablation": ablation_page,
}
"""The page of each protocol, in the order of the report."""
