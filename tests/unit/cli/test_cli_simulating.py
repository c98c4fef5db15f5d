"""Descriptions of simulations: what is read, and what is refused with which words."""

from pathlib import Path

import pytest

from gateway.cli.simulating import read_description
from gateway.values import SimulatedClass, Simulation
from services.common.errors import InvalidArgumentError, NotFoundError

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "simulate.yaml"


def written(folder: Path, text: str) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def test_the_example_becomes_a_simulation() -> None:
    description = read_description(EXAMPLE)
    assert description.simulation() == Simulation(
        (
            SimulatedClass(("none",), 100, (0.6, 1.0)),
            SimulatedClass(("Center",), 60, (0.6, 1.0)),
            SimulatedClass(("Edge-Ring",), 60, (0.3, 0.6)),
            SimulatedClass(("Spokes",), 20, (0.6, 1.0)),
            SimulatedClass(("Center", "Scratch"), 20, (0.6, 1.0)),
        ),
        seed=7,
        wafers_per_lot=5,
        sides=(24, 60),
        aspect=(0.8, 1.25),
        background_fail_rate=(0.01, 0.06),
    )
    assert description.labels() == ["none", "Center", "Edge-Ring", "Coater chuck", "Center+Scratch"]
    assert read_description(EXAMPLE, seed=9).simulation().seed == 9


def test_what_is_left_out_takes_its_default(tmp_path: Path) -> None:
    text = "classes: [{patterns: Loc, count: 3}]\ndie_grid: {rows: 30, columns: 25}\nbackground_fail_rate: 0.02\n"
    expected = Simulation((SimulatedClass(("Loc",), 3),), 0, 5, rows=30, columns=25, background_fail_rate=(0.02, 0.02))
    assert read_description(written(tmp_path, text)).simulation() == expected


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("seed: 1", {"classes"}),
        ("classes: []", {"classes"}),
        ("classes: [{patterns: Loc}]", {"classes.0.count"}),
        ("classes: [{count: 0, patterns: []}]", {"classes.0.count", "classes.0.patterns"}),
        ("classes: [{count: 1, patterns: Loc, strenght: 1}]", {"classes.0.strenght"}),
        ("classes: [{count: 1, patterns: Loc, strength: [0.5, 1.5]}]", {"classes.0.strength.1"}),
        ("classes: [{count: 1, patterns: Loc, strength: [0.9, 0.5]}]", {"classes.0"}),
        ("classes: [{count: 1, patterns: Loc}]\nbackground_fail_rate: .nan", {"background_fail_rate.0"}),
        ("classes: [{count: 1, patterns: Loc}]\nbackground_fail_rate: 60 %", {"background_fail_rate"}),
        ("classes: [{count: 1, patterns: Loc}]\nwafers_per_lot: 26\nseed: -1", {"wafers_per_lot", "seed"}),
        ("classes: [{count: 1, patterns: Loc}]\ndie_grid: {rows: 30}", {"die_grid"}),
        ("classes: [{count: 1, patterns: Loc}]\ndie_grid: {rows: 30, columns: 30, aspect: 1}", {"die_grid"}),
        ("classes: [{count: 1, patterns: Loc}]\ndie_grid: {sides: [4, 50]}", {"die_grid.sides.0"}),
        ("just a text", {"--simulate"}),
        ("classes: [", {"--simulate"}),
        ("a: !!python/object/apply:os.getcwd []", {"--simulate"}),
    ],
)
def test_each_wrong_field_is_named_with_what_was_received(tmp_path: Path, text: str, fields: set[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="Received") as caught:
        read_description(written(tmp_path, text))
    found = {each.field for each in caught.value.violations} or {caught.value.field}
    assert fields <= found


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_description(tmp_path / "none.yaml")
