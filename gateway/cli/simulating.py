"""`teachwafer generate --simulate`: a wafer set of simulated wafers, from a description in YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gateway.cli.options import Reach
from gateway.cli.output import Output
from gateway.values import SimulatedClass, Simulation
from services.common.errors import AlreadyExistsError, FieldViolation, InvalidArgumentError, NotFoundError
from services.common.npz import MAX_UNPACKED_BYTES
from services.common.wafer_set import WaferSetWriter

SOURCE = "simulated"
_MOST_BYTES = 1 << 20


def _both_ends(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_StrengthValue = Annotated[float, Field(ge=0.1, le=1)]
_RateValue = Annotated[float, Field(ge=0, le=0.5)]
_SideValue = Annotated[float, Field(ge=8, le=300)]
_AspectValue = Annotated[float, Field(ge=0.25, le=4)]

# A number stands for both ends.
Strength = Annotated[tuple[_StrengthValue, _StrengthValue], BeforeValidator(_both_ends)]
FailRate = Annotated[tuple[_RateValue, _RateValue], BeforeValidator(_both_ends)]
Sides = Annotated[tuple[_SideValue, _SideValue], BeforeValidator(_both_ends)]
Aspect = Annotated[tuple[_AspectValue, _AspectValue], BeforeValidator(_both_ends)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=False)

    @model_validator(mode="after")
    def _ranges_go_upwards(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise ValueError(f"{name}: expected [smallest, largest]")
        return self


class ClassPart(_Part):
    """One class of a description."""

    patterns: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    """Names of patterns; several are laid over one another."""
    count: int = Field(ge=1, le=100_000)
    """Wafers."""
    label: str = Field(default="", max_length=100)
    """Label of the wafers. Default: the patterns, joined by +."""
    strength: Strength | None = None
    """Factor on the share of dies that the patterns kill. Default: that of the whole description."""


class DieGridPart(_Part):
    """The products of a description: one exact size, or many sizes."""

    rows: int | None = Field(default=None, ge=8, le=300)
    columns: int | None = Field(default=None, ge=8, le=300)
    sides: Sides | None = None
    """Mean of rows and columns."""
    aspect: Aspect | None = None
    """Rows / columns."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.rows is None) != (self.columns is None):
            raise ValueError("expected both rows and columns, or neither")
        if self.rows is not None and (self.sides or self.aspect):
            raise ValueError("expected rows and columns, or sides and aspect, not both")
        return self


class Description(_Part):
    """A whole description."""

    classes: list[ClassPart] = Field(min_length=1)
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    wafers_per_lot: int = Field(default=5, ge=1, le=25)
    die_grid: DieGridPart = Field(default_factory=DieGridPart)
    background_fail_rate: FailRate | None = None
    """Share of dies that fail without a pattern."""
    strength: Strength | None = None
    """Factor on the share of dies that patterns kill, of classes that say nothing themselves."""

    def simulation(self) -> Simulation:
        """Returns what to ask the generator for."""
        grid = self.die_grid
        classes = tuple(
            SimulatedClass(tuple(each.patterns), each.count, each.strength or self.strength) for each in self.classes
        )
        return Simulation(
            classes,
            self.seed,
            self.wafers_per_lot,
            grid.rows or 0,
            grid.columns or 0,
            grid.sides,
            grid.aspect,
            self.background_fail_rate,
        )

    def labels(self) -> list[str]:
        """Returns the label of each class."""
        return [each.label or "+".join(sorted(each.patterns)) for each in self.classes]


def read_description(path: Path, seed: int | None = None) -> Description:
    """Reads a description.

    Args:
        path: YAML file.
        seed: In the place of the description's own; None leaves that.

    Raises:
        NotFoundError: There is no such file.
        InvalidArgumentError: It is no YAML, or fields are wrong; with a violation for each.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError("file", str(path)) from None
    try:
        content = yaml.safe_load(text[:_MOST_BYTES].decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = " ".join(str(error).split())
        raise InvalidArgumentError(f"Expected YAML in {path}. Received: {place[:300]}.", field="--simulate") from None
    if not isinstance(content, Mapping):
        raise InvalidArgumentError(
            f"Expected fields like classes and seed in {path}. Received: {type(content).__name__}.", field="--simulate"
        )
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        wrong = list(_violations(error))
        told = "\n".join(f"{each.field}: {each.description}" for each in wrong)
        raise InvalidArgumentError(f"{path} does not describe a simulation.\n{told}", violations=wrong) from None
    return description if seed is None else description.model_copy(update={"seed": seed})


async def simulate_to(output: Output, reach: Reach, spec: Path, out: Path | None, seed: int | None) -> None:
    """Simulates what a file describes and writes a wafer set.

    Args:
        output: Where to tell how it goes.
        reach: How to reach the generator.
        spec: The description.
        out: Wafer set to write; None: beside the description.
        seed: In the place of the description's own.

    Raises:
        AlreadyExistsError: The wafer set is there already.
        InvalidArgumentError: The description is wrong.
    """
    description = read_description(spec, seed)
    target = out or spec.with_suffix(".npz")
    if target.exists():
        raise AlreadyExistsError(
            "file", str(target), f"Expected a new file to write to. Received: {target}. Choose --out."
        )
    names = description.labels()
    counts: Counter[str] = Counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Wafers are written as they come: memory stays the same however many are asked for.
    with WaferSetWriter(target) as writer:
        async with reach.services(output, "generator") as session:
            async for index, wafer in session.clients.generator.run_simulation(description.simulation()):
                writer.add([wafer.dies], labels=[names[index]], groups=[wafer.identity.lot], sources=[SOURCE])
                counts[names[index]] += 1
        unpacked = writer.finish()
    output.table("Simulated wafers", ("class", ">wafers"), list(counts.items()))
    if unpacked > MAX_UNPACKED_BYTES:
        output.warn(
            f"Expected at most {MAX_UNPACKED_BYTES:,} bytes unpacked, which is what other commands read. Received: "
            f"{unpacked:,}. Describe fewer wafers, with another seed in each of several files."
        )
    several = " --task several" if any(len(each.patterns) > 1 for each in description.classes) else ""
    output.say(f"Written to {target}: {writer.wafers} wafers. Teach with them: teachwafer train {target}{several}")
    output.result({"out": str(target), "wafers": writer.wafers, "classes": counts, "seed": description.seed})


def _violations(error: ValidationError) -> Iterator[FieldViolation]:
    """Yields what is wrong with each field."""
    for each in error.errors():
        place = ".".join(str(part) for part in each["loc"]) or "the whole"
        what = each["msg"].removeprefix("Value error, ")
        received = repr(each["input"])[:100]
        yield FieldViolation(place, f"{what[:1].upper()}{what[1:]}. Received: {received}.")
