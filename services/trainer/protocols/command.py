"""`python -m services.trainer.protocols NAME --wafers SET.npz`: measures, prints a table or JSON, keeps the result."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.errors import TeachwaferError
from services.common.wafer_set import read_wafer_set
from services.trainer.protocols import ablation, few_shot, full, generated, label_noise, report, several, suite, unknown
from services.trainer.protocols.split_set import SplitSet, split_set

_DOCUMENT = "Measures how good teachwafer is, by one protocol."


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol.

    Attributes:
        add_options: adds its options to a parser.
        measure: measures; returns JSON values.
        document: what it measures, in a line.
    """

    add_options: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[SplitSet, argparse.Namespace], dict[str, Any]]
    document: str


PROTOCOLS: Mapping[str, Protocol] = {
    name: Protocol(module.add_options, module.measure, (module.__doc__ or "").split("\n")[0])
    for name, module in (
        ("full", full),
        ("few-shot", few_shot),
        ("several", several),
        ("unknown", unknown),
        ("generated", generated),
        ("label-noise", label_noise),
        ("ablation", ablation),
    )
}
"""All protocols by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.protocol == "report":
            report.write_pages(options.results, options.out)
        elif options.protocol == "suite":
            return suite.run_suite(options)
        else:
            _measure(options, sys.argv[1:] if arguments is None else arguments)
    except (TeachwaferError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    wafers = split_set(read_wafer_set(options.wafers), options.source)
    measured = PROTOCOLS[options.protocol].measure(wafers, options)
    result = {"protocol": options.protocol, "title": options.title, "command": command_line(arguments), **measured}
    text = json.dumps(result, ensure_ascii=False)
    if options.keep is not None:
        options.keep.parent.mkdir(parents=True, exist_ok=True)
        options.keep.write_text(report.readable_json(result), encoding="utf-8")
    print(text if options.json else report.page_of(options.protocol, [result]))


def command_line(arguments: Sequence[str]) -> str:
    """Returns the command that repeats a measurement, without where its result goes and folders of this machine."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument not in ("--keep", "--title", "--json"):
            kept.append(Path(argument).name if Path(argument).is_absolute() else argument)
        skip = not skip and argument in ("--keep", "--title")
    return f"python -m services.trainer.protocols {shlex.join(kept)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.protocols", description=_DOCUMENT)
    commands = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    for name, protocol in PROTOCOLS.items():
        command = commands.add_parser(name, help=protocol.document, description=protocol.document)
        command.add_argument("--wafers", type=Path, required=True, help="wafer set with labels, and group for the lots")
        command.add_argument("--source", default="", help="only wafers of this source")
        protocol.add_options(command)
        command.add_argument("--json", action="store_true", help="write one JSON object")
        command.add_argument("--keep", type=Path, metavar="FILE", help="write the result for the report")
        command.add_argument("--title", default="", help="what the report calls this result")
    report.add_options(commands.add_parser("report", help="Write the pages of docs/quality from kept results."))
    suite.add_options(commands.add_parser("suite", help="Run all protocols whose result is missing, then the report."))
    return parser
