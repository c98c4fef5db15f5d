"""Plots of the report, as SVG; they need matplotlib (`pip install teachwafer[report]`), the product does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from services.trainer.protocols.markdown import Result, title_of


def draw(protocol: str, results: Sequence[Result], folder: Path) -> list[str]:
    """Draws the plots of a protocol and returns the names of the files.

    Args:
        protocol: its name.
        results: kept results, at least one.
        folder: where the files are written.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    names = []
    for name, plot in _PLOTS.get(protocol, {}).items():
        with _figure(folder / f"{name}.svg") as figure:
            plot(figure, results)
        names.append(f"{name}.svg")
    return names


@contextmanager
def _figure(path: Path) -> Iterator[Any]:
    import matplotlib
    from matplotlib.figure import Figure

    # Shapes named by content and no date: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "teachwafer", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _few_shot(figure: Any, results: Sequence[Result]) -> None:
    axes = figure.subplots()
    for each in results:
        scores = each["scores"]
        axes.errorbar(
            [score["wafers_per_class"] for score in scores],
            [score["macro_f1"] for score in scores],
            [score["macro_f1_spread"] for score in scores],
            label=title_of(each),
            linestyle="--" if each.get("rival") else "-",
            marker="o",
            capsize=3,
        )
    sizes = sorted({score["wafers_per_class"] for each in results for score in each["scores"]})
    axes.set(xscale="log", xlabel="wafers a class", ylabel="macro-F1")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _confusion(figure: Any, results: Sequence[Result]) -> None:
    first = results[0]
    counts = np.array(first["runs"][0]["confusion"], float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=6)
    places = range(len(first["classes"]))
    axes.set_xticks(places, first["classes"], rotation=45, ha="right")
    axes.set_yticks(places, first["classes"])
    axes.set(xlabel="answer", ylabel="label", title=title_of(first))


def _accepted(figure: Any, results: Sequence[Result]) -> None:
    axes = figure.subplots()
    for each in results:
        if "curve" in each["runs"][0]:
            curve = np.mean([run["curve"] for run in each["runs"]], axis=0)
            axes.plot(curve[:, 0], 100 * curve[:, 1], marker=".", label=title_of(each))
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="share accepted, the most confident first", ylabel="wrong of these, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _unknown(figure: Any, results: Sequence[Result]) -> None:
    first = results[0]
    axes = figure.subplots()
    names = list(first["scores"])
    width = 0.8 / len(first["classes"])
    for index, left in enumerate(first["classes"]):
        values = [first["scores"][name]["classes"][left] for name in names]
        axes.bar(
            np.arange(len(names)) + index * width,
            [value["mean"] for value in values],
            width,
            yerr=[value["spread"] for value in values],
            label=left,
        )
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=30, ha="right")
    axes.set(ylim=(0.5, 1.0), ylabel="AUROC", title=title_of(first))
    figure.legend(loc="outside right upper", fontsize=7, title="left out")


def _generated(figure: Any, results: Sequence[Result]) -> None:
    first = results[0]
    axes = figure.subplots()
    for index, score in enumerate(first["scores"]):
        cells = [score["class_f1"][name] for name in first["targets"]]
        places = np.arange(len(cells)) + 0.8 * index / len(first["scores"])
        middle = np.array([100 * cell["difference"] for cell in cells])
        ends = [cell["interval"] or (cell["difference"],) * 2 for cell in cells]
        errors = np.abs(100 * np.array(ends).T - middle)
        label = f"{score['method']}, {score['wafers_per_class']} a class"
        axes.errorbar(places, middle, errors, fmt="o", capsize=2, label=label, markersize=3)
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set_xticks(np.arange(len(first["targets"])) + 0.4, first["targets"], rotation=30, ha="right")
    axes.set(ylabel="difference of F1, points", title=title_of(first))
    axes.legend(fontsize=7)


Plot = Callable[[Any, Sequence[Result]], None]
_PLOTS: Mapping[str, Mapping[str, Plot]] = {
    "full": {"confusion": _confusion, "accepted": _accepted},
    "few-shot": {"few-shot": _few_shot},
    "unknown": {"unknown": _unknown},
    "generated": {"generated": _generated},
}
