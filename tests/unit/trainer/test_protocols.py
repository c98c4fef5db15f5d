"""Few examples: the draws teach, judges come from other lots, and what cannot be measured is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from services.trainer.protocols import Pool, few_shot, main
from tests.unit.trainer.wafers import simulated


def pool(noise: float) -> Pool:
    """Three classes of unit vectors around three axes."""
    random = np.random.default_rng(0)

    def around(labels, copies):
        vectors = np.eye(6, dtype=np.float32)[labels][:, None] + noise * random.normal(size=(len(labels), copies, 6))
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    labels, truth = np.repeat(np.arange(3), 40), np.repeat(np.arange(3), 60)
    return Pool(("a", "b", "c"), around(labels, 4), labels, around(truth, 1)[:, 0], truth)


def test_more_wafers_teach_more_and_the_seed_decides():
    few, many = few_shot(pool(0.6), [1, 30], 5, seed=3)
    assert 1 / 3 < few.macro_f1 < many.macro_f1 < 1
    assert few.macro_f1_spread > 0
    assert many.macro_f1 == pytest.approx(np.mean(list(many.class_f1.values())))
    assert [few, many] == list(few_shot(pool(0.6), [1, 30], 5, seed=3))


def write(path, patterns, lots):
    grids = [simulated(pattern, 8)[0] for pattern in patterns]
    flat = [grid for part in grids for grid in part]
    np.savez(
        path,
        dies=np.concatenate([grid.ravel() for grid in flat]),
        shapes=np.array([grid.shape for grid in flat]),
        labels=np.repeat(patterns, 8),
        group=np.array([f"lot-{index % lots}" for index in range(len(flat))]),
    )


def test_the_command_measures_a_wafer_set(tmp_path, capsys):
    write(tmp_path / "set.npz", ["Center", "Scratch", "none"], lots=8)
    assert main(["few-shot", "--wafers", str(tmp_path / "set.npz"), "--sizes", "3", "--draws", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["scores"][0]["macro_f1"] > 0.5
    assert set(report["scores"][0]["class_f1"]) == {"Center", "Scratch", "none"}


def test_one_class_cannot_be_measured(tmp_path, capsys):
    write(tmp_path / "set.npz", ["Center"], lots=4)
    assert main(["few-shot", "--wafers", str(tmp_path / "set.npz")]) == 1
    assert "two classes" in capsys.readouterr().err


def test_a_class_in_one_lot_cannot_be_judged(tmp_path, capsys):
    write(tmp_path / "set.npz", ["Center", "none"], lots=1)
    assert main(["few-shot", "--wafers", str(tmp_path / "set.npz")]) == 1
    assert "other lots" in capsys.readouterr().err
