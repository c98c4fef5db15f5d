"""Writes `docs/quality` from kept results: a summary and a page a protocol. Nothing is measured anew."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgumentError
from services.trainer.protocols.markdown import Result, joined, share, table, title_of
from services.trainer.protocols.pages import PAGES
from services.trainer.protocols.pages_of_checks import verdict
from services.trainer.protocols.progress import say
from services.trainer.protocols.unknown import GRAPH

RESULTS_FOLDER = Path("docs/quality/results")
"""Where results are kept, one JSON file each; the order of their names is the order of their rows."""
NOTES = "## Notes"
"""What stands from this heading on in a page was written by people and stays when the page is written anew."""
P1, P1_STRETCH, P4, P4_WORST = 0.915, 0.93, 0.93, 0.89
P2 = {5: 0.90, 10: 0.905, 20: 0.91, 50: 0.915}
P2_NEW = {5: 0.82, 10: 0.85, 20: 0.87, 50: 0.89}
P2_NEW_CLASSES = {5: 0.65, 10: 0.70, 20: 0.75, 50: 0.80}
P3, P3_EXACT = 0.985, 0.97
P5, P5_ERROR, P5_DEFECTS, ECE, P7 = 0.92, 0.01, 0.85, 0.01, 1e-4
P6 = 0.02
P6_SIZES = (5, 10, 20)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds where results lie and where pages go."""
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER.parent)


def write_pages(results: Path, out: Path) -> None:
    """Writes all pages, and the plots where matplotlib is installed.

    Args:
        results: folder of kept results.
        out: folder of the pages.

    Raises:
        InvalidArgumentError: there is no result, or a file is none.
    """
    by_protocol = read_results(results)
    if not by_protocol:
        raise InvalidArgumentError(f"Expected results (*.json) in {results}. Received: none. Measure first.")
    out.mkdir(parents=True, exist_ok=True)
    for protocol, kept in by_protocol.items():
        pictures = "\n".join(f"![{Path(name).stem}](plots/{name})" for name in _drawn(protocol, kept, out / "plots"))
        _write(out / f"{protocol}.md", _with_pictures(page_of(protocol, kept), pictures))
    _write(out / "README.md", summary_page(by_protocol))


def read_results(folder: Path) -> dict[str, list[Result]]:
    """Returns kept results by protocol, protocols in the order of the pages.

    Raises:
        InvalidArgumentError: a file is no result.
    """
    found: dict[str, list[Result]] = {name: [] for name in PAGES}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found[result["protocol"]].append(result)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"Expected a result of one of {', '.join(PAGES)} in {path.name}. Received: {error!r}. Measure it again."
            ) from error
    return {name: results for name, results in found.items() if results}


def page_of(protocol: str, results: Sequence[Result]) -> str:
    """Returns the page of a protocol.

    Args:
        protocol: its name.
        results: at least one.
    """
    return PAGES[protocol](results)


def summary_page(by_protocol: dict[str, list[Result]]) -> str:
    """Returns the summary: every figure beside its target."""
    rows = [row for protocol, results in by_protocol.items() for row in _summary(protocol, results)]
    pages = [f"[{name}]({name}.md)" for name in by_protocol]
    return joined(
        "# How good it is",
        "Every figure is measured on lots that nothing was taught on and nothing was chosen by. A protocol's page says "
        "how, on what, with what spread, and with which command.",
        table(["protocol", "measured", "figure", "spread", "target", "met", "how, and the command"], rows),
        "Pages: " + ", ".join(pages) + ".",
        "All of it: `make evaluate-protocols`, with wafers_dev.npz in `TEACHWAFER_DATA`. What was measured before is "
        "kept in `results/` and not measured again; `--again` does. On wafers of your own: `teachwafer evaluate "
        "--protocol few-shot --wafers SET.npz`, and so on.",
    )


def _summary(protocol: str, results: Sequence[Result]) -> Iterator[list[str]]:
    for result in results:
        if protocol in _ROWS and not result.get("rival"):
            for row in _ROWS[protocol](result):
                yield [*row, f"[{protocol}]({protocol}.md#repeat-it)"]


def _row(protocol: str, what: str, figure: float, spread: float, target: float, most: bool = False) -> list[str]:
    """Returns one row; `most` says that the target is an upper limit."""
    met = figure <= target if most else figure >= target
    near = not met and abs(figure - target) <= spread
    sign = "≤" if most else "≥"
    number = "{:.1g}" if target < 1e-3 else "{:.3f}"
    text = "yes" if met else "no, inside the spread" if near else "no"
    shown = number.format(spread) if spread else ""
    return [protocol, what, number.format(figure), shown, f"{sign} {number.format(target)}", text]


def _full_rows(result: Result) -> Iterator[list[str]]:
    mean, spread, title = result["mean"], result["spread"], title_of(result)

    def row(protocol: str, what: str, name: str, target: float, most: bool = False) -> list[str]:
        return _row(protocol, f"{title}: {what}", mean[name], spread[name], target, most)

    low, high = result["runs"][0]["macro_f1_interval"]
    first = row("P1", "macro-F1", "macro_f1", P1)
    first[3] = f"{first[3]} over seeds, {low:.3f} to {high:.3f} over lots" if first[3] else f"{low:.3f} to {high:.3f}"
    yield first
    yield row("P5", "accepted share", "accepted_share", P5)
    yield row("P5", "wrong of the accepted", "accepted_error", P5_ERROR, most=True)
    yield row("P5", "accepted share among called defects", "defects_accepted_share", P5_DEFECTS)
    yield row("P5", "calibration error", "expected_calibration_error", ECE, most=True)
    yield row("P7", "largest difference of ONNX and Keras", "parity_max_difference", P7, most=True)


def _few_shot_rows(result: Result) -> Iterator[list[str]]:
    new, title = bool(result["new_classes"]), title_of(result)
    targets = P2_NEW if new else P2
    for score in result["scores"]:
        size = score["wafers_per_class"]
        if size in targets:
            what = f"{title}: macro-F1 from {size} wafers a class"
            yield _row("P2b" if new else "P2a", what, score["macro_f1"], score["macro_f1_spread"], targets[size])
        if new and size in P2_NEW_CLASSES:
            what = f"{title}: F1 of the new classes from {size}"
            figure, spread = score["new_classes_f1"], score["new_classes_f1_spread"]
            yield _row("P2b", what, figure, spread, P2_NEW_CLASSES[size])


def _several_rows(result: Result) -> Iterator[list[str]]:
    mean, spread, title = result["mean"], result["spread"], title_of(result)
    yield _row("P3", f"{title}: macro-F1", mean["macro_f1"], spread["macro_f1"], P3)
    yield _row("P3", f"{title}: exact match", mean["exact_match"], spread["exact_match"], P3_EXACT)


def _unknown_rows(result: Result) -> Iterator[list[str]]:
    score, title = result["scores"][GRAPH], title_of(result)
    yield _row("P4", f"{title}: AUROC", score["mean"], score["spread"], P4)
    worst = min(score["classes"].values(), key=lambda each: each["mean"])
    yield _row("P4", f"{title}: AUROC of the worst class", score["worst"], worst["spread"], P4_WORST)


def _generated_rows(result: Result) -> Iterator[list[str]]:
    for score in result["scores"]:
        targets, size = score["targets_f1"], score["wafers_per_class"]
        what = f"{title_of(result)}: F1 of generated classes, {score['method']}, {size} wafers a class"
        low_high = targets["interval"]
        shown = f"{share(low_high[0])} to {share(low_high[1])}" if low_high else ""
        met = verdict(low_high) if size not in P6_SIZES or targets["difference"] < P6 else "yes"
        goal = f"≥ {share(P6)}" if size in P6_SIZES else ""
        yield ["P6", what, share(targets["difference"]), shown, goal, met]


def _label_noise_rows(result: Result) -> Iterator[list[str]]:
    lots, unseen = result["all_lots"], result["lots_unseen_by_pretraining"]
    what = f"{title_of(result)}: macro-F1 that the labels themselves allow, estimate"
    yield ["labels", what, f"{lots['ceiling']:.3f}", f"{unseen['ceiling']:.3f} on lots unseen by pretraining", "", ""]


_ROWS: Mapping[str, Callable[[Result], Iterator[list[str]]]] = {
    "full": _full_rows,
    "few-shot": _few_shot_rows,
    "several": _several_rows,
    "unknown": _unknown_rows,
    "generated": _generated_rows,
    "label-noise": _label_noise_rows,
}


def _drawn(protocol: str, results: Sequence[Result], folder: Path) -> list[str]:
    from services.trainer.protocols import plots

    try:
        return plots.draw(protocol, results, folder)
    except ModuleNotFoundError as error:
        say(f"No plots: {error.name} is not installed. `pip install teachwafer[report]` brings it.")
        return []


def _with_pictures(page: str, pictures: str) -> str:
    """Returns the page with pictures before its second heading."""
    head, *rest = page.split("\n\n## ", 1)
    return joined(head, pictures, *(f"## {part}" for part in rest))


def _write(path: Path, page: str) -> None:
    notes = ""
    if path.is_file():
        _, found, written = path.read_text(encoding="utf-8").partition(f"\n{NOTES}\n")
        notes = f"{NOTES}\n{written.rstrip()}" if found else ""
    path.write_text(joined(page, notes) + "\n", encoding="utf-8")


def readable_json(value: Any) -> str:
    """Returns JSON for people and version control: indented, innermost lists on one line, numbers of six digits."""
    text = json.dumps(_rounded(value), indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found.group()), text) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
