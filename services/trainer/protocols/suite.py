"""All measurements of the report on the development set, one after the other; what is kept is not measured again.

Each runs in a process of its own, so that a measurement starts with a fresh memory, and one that fails does not take
the others with it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from services.trainer.protocols.progress import say
from services.trainer.protocols.report import RESULTS_FOLDER, write_pages

WM = ("--source", "WM-811K")
MIXED = ("--source", "MixedWM38")
_NEW = ("--new-classes", "Donut", "Loc", "Scratch")
_LONG = ("--epochs", "12", "--batch-size", "64")
_BEST = ("--backbone", "wafer-best")
_BALANCED = ("--backbone", "wafer-balanced")
_UNKNOWN = ("unknown", *WM, *_LONG, "--no-fine-tune", "--seeds", "0", "1")
_RARE = ("--classes", "Donut", "Near-full", "Scratch", "Random")

MEASUREMENTS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("label-noise-fast", "WM-811K", ("label-noise", *WM)),
    ("few-shot-1-fast", "Fast", ("few-shot", *WM)),
    ("few-shot-2-balanced", "Balanced", ("few-shot", *WM, *_BALANCED)),
    ("few-shot-3-best", "Best", ("few-shot", *WM, *_BEST)),
    ("full-1-fast", "Fast", ("full", *WM, *_LONG, "--no-fine-tune", "--seeds", "0", "1")),
    ("full-2-balanced", "Balanced", ("full", *WM, *_LONG, *_BALANCED, "--no-fine-tune", "--seeds", "0", "1")),
    ("full-3-best", "Best", ("full", *WM, *_LONG, *_BEST, "--no-fine-tune", "--seeds", "0")),
    ("several-1-fast", "Fast", ("several", *MIXED, *_LONG, "--seeds", "0", "1")),
    ("several-2-balanced", "Balanced", ("several", *MIXED, *_LONG, *_BALANCED, "--seeds", "0", "1")),
    ("several-3-best", "Best", ("several", *MIXED, *_LONG, *_BEST, "--seeds", "0")),
    ("unknown-1-fast", "Fast, taught without the class", _UNKNOWN),
    ("generated-1-all", "Fast, every class few", ("generated", *WM, "--methods", "variations")),
    ("generated-2-rare", "Fast, four rare classes few", ("generated", *WM, *_RARE, "--others", "50")),
)
"""Name of the kept result, its title, and the arguments; the order of the names is that of the rows."""
WITHOUT_CLASSES: Sequence[tuple[str, str, Sequence[str]]] = (
    ("few-shot-5-new-fast", "Fast, three classes new to it", ("few-shot", *WM, *_NEW)),
    ("few-shot-6-new-best", "Best, three classes new to it", ("few-shot", *WM, *_NEW, *_BEST)),
    ("unknown-2-new-fast", "Fast, neither pretrained nor taught", _UNKNOWN),
)
"""Those that need weights pretrained without Donut, Loc and Scratch (`--without-classes FOLDER`)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the suite can be told."""
    data = Path(os.environ.get("TEACHWAFER_DATA", "../shared/data"))
    parser.add_argument("--wafers", type=Path, default=data / "wafers_dev.npz", help="the development set")
    parser.add_argument("--results", type=Path, default=RESULTS_FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER.parent)
    parser.add_argument(
        "--without-classes", type=Path, metavar="FOLDER", help="weights pretrained without Donut, Loc and Scratch"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only results whose name begins so")
    parser.add_argument("--again", action="store_true", help="measure again what is kept")


def run_suite(options: argparse.Namespace) -> int:
    """Measures what is missing, writes the pages, and returns 0, or 1 when a measurement failed."""
    weights = ("--weights", str(options.without_classes))
    wanted = list(MEASUREMENTS)
    if options.without_classes is not None:
        wanted += [(name, title, (*arguments, *weights)) for name, title, arguments in WITHOUT_CLASSES]
    failed = []
    for name, title, arguments in wanted:
        kept = options.results / f"{name}.json"
        if options.only and not name.startswith(tuple(options.only)):
            continue
        if kept.is_file() and not options.again:
            say(f"== {name}: kept")
            continue
        say(f"== {name}")
        command = [sys.executable, "-m", "services.trainer.protocols", *arguments, "--wafers", str(options.wafers)]
        keep = ["--keep", str(kept), "--title", title, "--json"]
        done = subprocess.run([*command, *keep], check=False, stdout=subprocess.DEVNULL)  # noqa: S603
        failed += [name] if done.returncode else []
    write_pages(options.results, options.out)
    if failed:
        say(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0
