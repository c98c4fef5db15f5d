"""Pages of scores: full data, few examples, several patterns, ablation."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.protocols.markdown import (
    Result,
    joined,
    matrix,
    repeat,
    score_cell,
    share,
    table,
    title_of,
    with_spread,
)


def full_page(results: Sequence[Result]) -> str:
    """P1, P5 and P7."""
    first = results[0]
    rows = [
        [
            title_of(each),
            f"{each['training_wafers']:,}",
            score_cell(each, "macro_f1"),
            _interval(each["runs"][0]["macro_f1_interval"]),
            score_cell(each, "accuracy"),
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
        repeat(results),
    )


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
            score_cell(each, "accepted_share"),
            score_cell(each, "accepted_error"),
            score_cell(each, "defects_accepted_share"),
            score_cell(each, "defects_accepted_error"),
            score_cell(each, "expected_calibration_error"),
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
        f"over draws, seed {first['seed']}. The network, and what it knows of patterns by name, was pretrained on the "
        "same training lots.",
        _few_shot_table("P2a: classes that pretraining has seen", seen, sizes),
        _few_shot_table("P2b: three classes that pretraining has not seen in real wafers", new, sizes),
        _new_classes(new, sizes),
        *(_few_shot_classes(each) for each in results if not each.get("rival")),
        repeat(results),
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
        "The few-shot table of several weights, same draws, same judges. The weights of a row are made by "
        "`python -m services.trainer.pretrain --backbones BACKBONE --leave-out CLASSES --tasks TASKS --steps STEPS "
        "--work WORK --out FOLDER`, with what the row's name says.",
    ]
    for each in results:
        sizes = sorted({score["wafers_per_class"] for row in each["rows"] for score in row["scores"]})
        columns = ["pretrained on", *(f"{size} a class" for size in sizes)]
        parts += [f"## {title_of(each)}", table(columns, _ablation_rows(each, sizes, "macro_f1"))]
        if each["new_classes"]:
            parts += [f"F1 of {', '.join(each['new_classes'])} alone:"]
            parts += [table(columns, _ablation_rows(each, sizes, "new_classes_f1"))]
    return joined(*parts, repeat(results))


def _ablation_rows(result: Result, sizes: Sequence[int], name: str) -> list[list[str]]:
    return [[row["name"], *_cells(row["scores"], sizes, name)] for row in result["rows"]]


def several_page(results: Sequence[Result]) -> str:
    """P3."""
    first = results[0]
    rows = [
        [
            title_of(each),
            f"{each['training_wafers']:,}",
            score_cell(each, "macro_f1"),
            score_cell(each, "exact_match"),
            score_cell(each, "accepted_share"),
            score_cell(each, "accepted_error"),
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
        repeat(results),
    )


def _counts(result: Result) -> list[str]:
    return sorted(result["runs"][0]["exact_by_count"])


def _over_runs(result: Result, table_name: str, name: str) -> float:
    values = [run[table_name][name] for run in result["runs"]]
    return float(sum(values) / len(values))


def _f1(result: Result, name: str) -> float:
    return _over_runs(result, "class_f1", name)
