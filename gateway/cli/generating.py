"""`teachwafer generate`: more wafers of the classes of a folder."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import typer
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gateway.cli.following import cancelled_with_command, follow_generation
from gateway.cli.generated import generation_json, show_generation, write_generation
from gateway.cli.options import GeneratorAddress, Home, Json, Local, Reach, Session
from gateway.cli.output import Output
from gateway.cli.simulating import simulate_to
from gateway.cli.wafers import Frozen, TaughtWafers, class_id, described, freeze, read_taught
from gateway.values import VARIATION_LIMITS, GenerationRequest, GenerationRun, Method, VariationOptions
from services.common.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError
from services.common.store import open_store

DEFAULT_COUNT = 100


class ClassStatus(BaseModel):
    """How to make wafers of one class: one entry of `--status`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    """Name of the class's folder."""
    ai_use: bool
    """Whether to teach a generator on the class; false varies its wafers."""
    count: int | None = Field(default=None, ge=1, le=1_000_000)
    """Wafers to make. Absent: `--count`."""
    rotation_degrees: float | None = Field(default=None, ge=0, le=VARIATION_LIMITS["rotation_degrees"])
    """This and what follows: settings of variations of this class. Absent: the option of the same name."""
    shear: float | None = Field(default=None, ge=0, le=VARIATION_LIMITS["shear"])
    horizontal_mirror: bool | None = None
    vertical_mirror: bool | None = None
    shift: float | None = Field(default=None, ge=0, le=VARIATION_LIMITS["shift"])
    die_noise: float | None = Field(default=None, ge=0, le=VARIATION_LIMITS["die_noise"])
    strength: float | None = Field(default=None, ge=0, le=VARIATION_LIMITS["strength"])
    handedness: bool | None = None

    @model_validator(mode="after")
    def _settings_of_variations_alone(self) -> Self:
        if self.ai_use and self.variations(VariationOptions()) != VariationOptions():
            raise ValueError("settings of variations need ai_use false: a learned generator has none of them")
        return self

    def variations(self, otherwise: VariationOptions) -> VariationOptions:
        """Returns the settings of the class, with others in the place of those that it leaves open."""
        own = {each.name: getattr(self, each.name) for each in fields(VariationOptions)}
        return replace(otherwise, **{name: value for name, value in own.items() if value is not None})


_PANEL = "Settings of variations (ai_use false); left out, what is legal for the pattern"

Rotation = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=VARIATION_LIMITS["rotation_degrees"],
        rich_help_panel=_PANEL,
        help="Largest rotation to either side, degrees (180).",
    ),
]
Shear = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=VARIATION_LIMITS["shear"],
        rich_help_panel=_PANEL,
        help="Largest shear, share of the wafer (0.05; 0 for die-row patterns).",
    ),
]
HorizontalMirror = Annotated[
    bool | None, typer.Option(rich_help_panel=_PANEL, help="Mirror half of the wafers left to right (yes).")
]
VerticalMirror = Annotated[
    bool | None, typer.Option(rich_help_panel=_PANEL, help="Mirror half of the wafers top to bottom (yes).")
]
Shift = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=VARIATION_LIMITS["shift"],
        rich_help_panel=_PANEL,
        help="Largest shift of the pattern, share of the radius (0.03; 0 for edge and die-row patterns).",
    ),
]
DieNoise = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=VARIATION_LIMITS["die_noise"],
        rich_help_panel=_PANEL,
        help="Share of dies whose result is flipped at random (0.005).",
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=VARIATION_LIMITS["strength"],
        rich_help_panel=_PANEL,
        help="Largest change of the pattern's strength: share of its failed dies that pass on half of the wafers, of "
        "its passed dies that fail on the others (0.1).",
    ),
]
Handedness = Annotated[
    bool | None,
    typer.Option(
        rich_help_panel=_PANEL,
        help="The pattern tells left from right, as a swirl does: mirror nothing (no).",
    ),
]


def generate(
    generating_dir: Annotated[
        Path | None,
        typer.Option(
            "--generating_dir", "--generating-dir", help="Folder with one folder a class.", show_default=False
        ),
    ] = None,
    simulate: Annotated[
        Path | None,
        typer.Option(
            metavar="SPEC.yaml",
            help="Instead of a folder: simulate what a file describes, and write a wafer set. See docs/simulator.md.",
            show_default=False,
        ),
    ] = None,
    status: Annotated[
        str,
        typer.Option(
            help='What to make, JSON: \'[{"name":"class1","ai_use":true},{"name":"class2","ai_use":false}]\'. '
            "ai_use true teaches a generator on the class (20 wafers at least), false varies its wafers; count and the "
            'settings of variations may be said for each class as well, as in "handedness":true. '
            "Default: vary the wafers of every class."
        ),
    ] = "",
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Wafers to make of each class.")] = DEFAULT_COUNT,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to. Default: DIR-generated beside DIR. Wafer set of --simulate; default: SPEC.npz."
        ),
    ] = None,
    file_format: Annotated[
        Literal["npz", "png"],
        typer.Option("--format", help="A wafer set a class, which keeps every die exactly, or a picture a wafer."),
    ] = "npz",
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**32 - 1, help="Seed of everything random. Default: 0, or the one in SPEC.yaml."),
    ] = None,
    rotation_degrees: Rotation = None,
    shear: Shear = None,
    horizontal_mirror: HorizontalMirror = None,
    vertical_mirror: VerticalMirror = None,
    shift: Shift = None,
    die_noise: DieNoise = None,
    strength: Strength = None,
    handedness: Handedness = None,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove",
            help="Also teach a small classifier with and without the wafers made and tell what they change in its "
            "macro-F1. Lots are set aside to judge it; their wafers have no children then.",
        ),
    ] = False,
    home: Home = None,
    local: Local = False,
    generator_address: GeneratorAddress = "",
    as_json: Json = False,
) -> None:
    """Make more wafers of the classes of a folder, or simulate some, and write them where `train` can read them."""
    reach = Reach.to(home, local, generator=generator_address)
    if (generating_dir is None) == (simulate is None):
        raise InvalidArgumentError(
            "Expected --generating_dir with a folder of wafers, or --simulate with a description. Received: "
            f"{'neither' if simulate is None else 'both'}.",
            field="--generating_dir",
        )
    if simulate is not None and prove:
        raise InvalidArgumentError(
            "Expected --prove with --generating_dir: real wafers judge whether others help. Received: --simulate.",
            field="--prove",
        )
    if simulate is not None:
        asyncio.run(simulate_to(Output(as_json), reach, simulate, out, seed))
        return
    assert generating_dir is not None  # noqa: S101 - said above
    target = out or generating_dir.resolve().with_name(f"{generating_dir.resolve().name}-generated")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AlreadyExistsError(
            "folder", str(target), f"Expected a new or empty folder to write to. Received: {target}. Choose --out."
        )
    wanted = parse_status(status)
    options = VariationOptions(
        rotation_degrees=rotation_degrees,
        shear=shear,
        horizontal_mirror=horizontal_mirror,
        vertical_mirror=vertical_mirror,
        shift=shift,
        die_noise=die_noise,
        strength=strength,
        handedness=handedness,
    )
    output = Output(as_json)
    asyncio.run(_generate(output, reach, generating_dir, wanted, count, options, target, file_format, seed or 0, prove))


def parse_status(status: str) -> list[ClassStatus]:
    """Reads `--status`.

    Args:
        status: The option; "" asks for nothing in particular.

    Raises:
        InvalidArgumentError: It is not the JSON that it should be.
    """
    if not status:
        return []
    try:
        return TypeAdapter(list[ClassStatus]).validate_json(status)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InvalidArgumentError(
            'Expected --status as JSON like \'[{"name":"class1","ai_use":true}]\'. '
            f"Received: {status[:200]!r}; {place}: {first['msg']}.",
            field="--status",
        ) from None


async def _generate(
    output: Output,
    reach: Reach,
    folder: Path,
    wanted: list[ClassStatus],
    count: int,
    options: VariationOptions,
    target: Path,
    file_format: str,
    seed: int,
    prove: bool,
) -> None:
    """Reads, freezes, makes, writes, tells."""
    taught = read_taught(folder)
    wanted_of = requests(wanted, taught, count, options)
    present = set(taught.labels)
    if prove and len(present) < 2:
        raise FailedPreconditionError(
            "Expected wafers of at least two classes, which a classifier tells apart, for --prove. Received: "
            f"{', '.join(present)}. Add a folder with wafers of another class, or generate without --prove.",
            reason="TOO_FEW_CLASSES",
        )
    store = open_store(reach.settings().resolved_store_url)
    frozen = freeze(store, taught, hold_back=prove)
    for sentence in frozen.warnings:
        output.warn(sentence)
    if taught.skipped:
        output.warn(f"{len(taught.skipped)} files could not be read:\n{described(taught.skipped)}")
    async with reach.services(output, "generator") as session:
        ended = await make_more(session, output, frozen, wanted_of, seed=seed, name=folder.name, prove=prove)
    written = write_generation(store, ended, frozen, target, file_format)
    show_generation(output, ended, frozen)
    output.say(f"Written to {target}: {sum(written.values())} wafers. Teach with them: teachwafer train {target}")
    output.result(generation_json(ended, frozen) | {"out": str(target), "written": written})


def requests(
    wanted: list[ClassStatus], taught: TaughtWafers, count: int, options: VariationOptions | None = None
) -> list[GenerationRequest]:
    """Returns what to ask the generator for.

    Args:
        wanted: What the person asked for; empty varies every class.
        taught: The wafers that there are.
        count: Wafers of a class that says nothing itself.
        options: Settings of variations of a class that says nothing itself.

    Raises:
        InvalidArgumentError: A class comes twice, or there is no folder of its name.
    """
    present = sorted(set(taught.labels))
    wanted = wanted or [ClassStatus(name=name, ai_use=False) for name in present]
    names = [each.name for each in wanted]
    for name in names:
        if name not in present or names.count(name) > 1:
            raise InvalidArgumentError(
                f"Expected each class of --status once, and a folder with wafers for it ({', '.join(present)}). "
                f"Received: {name!r}.",
                field="--status",
            )
    return [
        GenerationRequest(
            class_id(each.name),
            each.count or count,
            Method.LEARNED if each.ai_use else Method.VARIATIONS,
            each.variations(options or VariationOptions()),
        )
        for each in wanted
    ]


async def make_more(
    session: Session,
    output: Output,
    frozen: Frozen,
    wanted: list[GenerationRequest],
    *,
    seed: int,
    name: str,
    prove: bool = False,
) -> GenerationRun:
    """Makes wafers and shows how far it is.

    Args:
        session: The services.
        output: Where to show it.
        frozen: Data set version with the parents.
        wanted: What to make.
        seed: Seed of everything random.
        name: Name of the generation for people.
        prove: Whether to tell what the wafers change in a classifier.

    Raises:
        JobFailedError: The generation failed.
    """
    clients = session.clients
    started = await clients.generator.create(
        frozen.dataset_id, wanted, seed=seed, display_name=name, request_id=uuid.uuid4().hex, prove=prove
    )
    output.say(f"Generation {started.run_id}")
    async with cancelled_with_command(
        output,
        lambda: clients.generator.cancel(started.run_id),
        embedded="generator" in session.embedded,
        what=f"Generation {started.run_id}",
    ):
        names = {each.class_id: each.display_name for each in frozen.classes}
        return await follow_generation(clients, output, started.run_id, names)
