"""CSV die lists: one row a die, with its place and its bin or its result, of one or of many wafers.

Columns are known by their usual headings; the delimiter, a byte order mark and Korean encodings are found out. Row 0 of
the map is the smallest y. A die that was tested several times counts as tested last; one without result was not tested.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from services.common.errors import InvalidArgumentError
from services.common.formats.reading import Format, Reading
from services.common.wafer_map import FAIL, MAX_SIDE, PASS, WaferIdentity, WaferMap

_HEADINGS = {
    "x": "x diex xdie xcoord xcoordinate xpos posx col column diecol diecolumn colindex xindex indexx waferx xloc",
    "y": "y diey ydie ycoord ycoordinate ypos posy row dierow rowindex yindex indexy wafery yloc",
    "bin": "bin hbin sbin hardbin softbin hardbinnumber softbinnumber bincode binnumber binno binnum binid diebin",
    "result": "result passfail pf status pass verdict testresult dieresult judge judgement judgment passflag value die",
    "lot": "lot lotid lotname lotno lotnumber",
    "wafer": "wafer waferid waferno wafernumber wafername waferindex wfid wf",
    "slot": "slot slotid slotno slotnumber",
    "product": "product productid device deviceid partid part",
    "step": "step stepid operation process teststep",
    "tool": "tool toolid equipment equipmentid eqpid tester",
    "label": "label class classname pattern defect defectpattern defecttype failuretype category",
}
_KIND_OF_HEADING = {heading: kind for kind, headings in _HEADINGS.items() for heading in headings.split()}
_DOWNWARDS = frozenset(["row", "dierow", "rowindex"])
_DELIMITERS = ",;\t|"
_PASSED = frozenset(["pass", "passed", "p", "ok", "good", "true", "yes", "y"])
_FAILED = frozenset(["fail", "failed", "f", "ng", "nok", "bad", "false", "no", "n", "reject", "rejected", "x"])
_UNTESTED = frozenset(["", "-", "nan", "na", "n/a", "null", "none", "nt", "not tested", "untested", "skip"])
_MAX_ROWS = 20_000_000
_LARGEST = 1 << 53


@dataclass(slots=True)
class _Dies:
    """Dies of one wafer as they were listed."""

    facts: dict[str, str]
    x: list[int] = field(default_factory=list)
    y: list[int] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    unreadable: int = 0


def _sniff(name: str, head: bytes) -> bool:
    text = _decoded_head(head)
    if text is None:
        return False
    line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = _delimiter(line)
    if delimiter is None:
        return False
    cells = [cell.strip() for cell in line.split(delimiter)]
    kinds = set(_kinds(cells))
    return {"x", "y"} <= kinds or (len(cells) >= 3 and all(_number(cell) is not None for cell in cells[:3]))


def _read(name: str, file: IO[bytes], reading: Reading) -> None:
    text = _decoded(file.read())
    rows = _rows(text)
    first = next(rows, None)
    if first is None:
        raise InvalidArgumentError("The file has no rows.")
    kinds = _kinds(first)
    if {"x", "y"} <= set(kinds):
        if not {"bin", "result"} & set(kinds):
            raise InvalidArgumentError(
                f"Expected a column with each die's bin or result. Received the columns {', '.join(first)[:300]}."
            )
    else:
        reading.warn("Columns have no headings: taken as x, y and bin.")
        kinds = ["x", "y", "bin", *[""] * (len(first) - 3)]
        rows = _chained(first, rows)
    if not any(_normal(cell) in _DOWNWARDS for cell in first):
        reading.warn("The file does not say where y grows: taken as downwards, with the smallest y at the top.")
    wafers = _collect(rows, kinds)
    if not wafers:
        raise InvalidArgumentError("The file has headings but no dies.")
    is_bin = "bin" in kinds
    for key, dies in wafers.items():
        source = name if len(wafers) == 1 else f"{name}#{'/'.join(part for part in key if part)}"
        try:
            wafer = _wafer_map(dies, is_bin, source, reading)
        except InvalidArgumentError as error:
            reading.skip(source, error.message)
            continue
        reading.add(wafer, dies.facts.get("label", "") or None, source)


def _collect(rows: Iterator[list[str]], kinds: Sequence[str]) -> dict[tuple[str, ...], _Dies]:
    """Return the listed dies by lot and wafer (or slot), in the order in which the wafers appear."""
    place = {kind: index for index, kind in reversed(list(enumerate(kinds))) if kind}
    x_at, y_at, result_at = place["x"], place["y"], place.get("bin", place.get("result", -1))
    keys = [place[kind] for kind in ("lot", "wafer", "slot") if kind in place]
    facts = {kind: index for kind, index in place.items() if kind not in ("x", "y", "bin", "result")}
    wafers: dict[tuple[str, ...], _Dies] = {}
    for count, row in enumerate(rows):
        if count >= _MAX_ROWS:
            raise InvalidArgumentError(f"Expected at most {_MAX_ROWS:,} rows. Received more: split the file.")
        if len(row) < len(kinds):
            row = [*row, *[""] * (len(kinds) - len(row))]
        key = tuple(row[index].strip() for index in keys)
        dies = wafers.get(key)
        if dies is None:
            dies = wafers[key] = _Dies(facts={kind: row[index].strip() for kind, index in facts.items()})
        if not dies.facts.get("label") and "label" in facts:
            dies.facts["label"] = row[facts["label"]].strip()
        x, y = _whole(row[x_at]), _whole(row[y_at])
        if x is None or y is None:
            dies.unreadable += 1
            continue
        dies.x.append(x)
        dies.y.append(y)
        dies.results.append(row[result_at].strip())
    return wafers


def _wafer_map(dies: _Dies, is_bin: bool, source: str, reading: Reading) -> WaferMap:
    if dies.unreadable:
        reading.warn(f"{source}: {dies.unreadable} rows without a readable x and y are left out.")
    if dies.unreadable > len(dies.x):
        raise InvalidArgumentError(f"Most rows ({dies.unreadable}) have no whole numbers as x and y.")
    x, y = np.array(dies.x, np.int64), np.array(dies.y, np.int64)
    columns, rows = int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1
    if columns > MAX_SIDE or rows > MAX_SIDE:
        raise InvalidArgumentError(
            f"Expected dies within {MAX_SIDE} columns and rows. Received: {columns} x {rows}: x and y must count dies."
        )
    x, y = x - x.min(), y - y.min()
    if len(np.unique(y * columns + x)) < len(x):
        reading.warn(f"{source}: some dies are listed more than once; the last result counts.")
    codes, bins = (_bin_codes if is_bin else _result_codes)(dies.results, reading.pass_bins)
    grid = np.zeros((rows, columns), np.uint8)
    grid[y, x] = codes
    bin_grid = None
    if bins is not None:
        bin_grid = np.zeros((rows, columns), np.int32)
        bin_grid[y, x] = bins
    if not grid.any():
        raise InvalidArgumentError("No die has a result.")
    return WaferMap(grid, identity=_identity(dies.facts), bins=bin_grid)


def _bin_codes(results: Sequence[str], pass_bins: frozenset[int]) -> tuple[list[int], list[int] | None]:
    """Return the value of each die, and its bin."""
    values: dict[str, tuple[int, int]] = {}
    for text in set(results):
        number = _whole(text)
        if number is not None:
            if abs(number) >= 1 << 31:
                raise InvalidArgumentError(f"Expected bins that are whole numbers of 32 bits. Received: {text[:40]!r}.")
            values[text] = (PASS if number in pass_bins else FAIL, number)
        elif text.lower() in _UNTESTED:
            values[text] = (0, 0)
        else:
            # Bins with letters: their pass or fail is written as a word, or nobody knows it.
            values[text] = (_word_code(text), 0)
    return [values[text][0] for text in results], [values[text][1] for text in results]


def _result_codes(results: Sequence[str], pass_bins: frozenset[int]) -> tuple[list[int], None]:
    """Return the value of each die from words, from 1 and 0 (pass and fail) or from 0, 1 and 2 (no die, pass, fail)."""
    different = set(results)
    numbers = {text: _whole(text) for text in different}
    grid_values = any(number == FAIL for number in numbers.values())
    values: dict[str, int] = {}
    for text, number in numbers.items():
        if text.lower() in _UNTESTED:
            values[text] = 0
        elif number is None:
            values[text] = _word_code(text)
        elif number not in (0, 1, 2):
            raise InvalidArgumentError(
                f"Expected results 1 (pass) and 0 (fail), or 0, 1 and 2. Received: {text[:40]!r}."
            )
        elif number == 0:
            values[text] = 0 if grid_values else FAIL
        else:
            values[text] = number
    return [values[text] for text in results], None


def _word_code(text: str) -> int:
    word = text.lower()
    if word in _PASSED:
        return PASS
    if word in _FAILED:
        return FAIL
    raise InvalidArgumentError(f"Expected a bin number, or a result such as pass or fail. Received: {text[:40]!r}.")


def _identity(facts: dict[str, str]) -> WaferIdentity:
    slot = _whole(facts.get("slot", ""))
    return WaferIdentity(
        lot=facts.get("lot", ""),
        wafer=facts.get("wafer", ""),
        slot=slot if slot is not None and 1 <= slot <= 25 else 0,
        product=facts.get("product", ""),
        step=facts.get("step", ""),
        tool=facts.get("tool", ""),
    )


def _kinds(cells: Sequence[str]) -> list[str]:
    return [_KIND_OF_HEADING.get(_normal(cell), "") for cell in cells]


def _normal(cell: str) -> str:
    return re.sub(r"[^a-z]", "", cell.lower())


def _rows(text: str) -> Iterator[list[str]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    lines = (line for line in io.StringIO(text, newline=None) if line.strip())
    reader = csv.reader(lines, delimiter=_delimiter(first) or ",", skipinitialspace=True)
    try:
        yield from reader
    except csv.Error as error:
        raise InvalidArgumentError(f"Line {reader.line_num} is no CSV ({error}).") from error


def _chained(first: list[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rows


def _delimiter(line: str) -> str | None:
    best = max(_DELIMITERS, key=line.count)
    return best if line.count(best) >= 2 else None


def _decoded(data: bytes) -> str:
    text = _decoded_head(data)
    if text is None:
        raise InvalidArgumentError("Expected text. Received bytes that are none.")
    return text


def _decoded_head(data: bytes) -> str | None:
    """Return the text in the first encoding that fits, or None if it is none."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        return None
    for encoding in ("utf-8-sig", "cp949"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            # The head of a file may end inside a character.
            if len(data) - error.start < 4 and error.start > 0:
                return data[: error.start].decode(encoding)
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    """Return a whole number, also written as 3.0, or None."""
    number = _number(text)
    if number is None or not math.isfinite(number) or number != int(number) or abs(number) > _LARGEST:
        return None
    return int(number)


FORMAT = Format(name="CSV die list", extensions=(".csv", ".tsv", ".txt"), sniff=_sniff, read=_read, order=40)
