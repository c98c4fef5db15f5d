"""The protocols: who teaches and who judges, figures checked by hand, and each command on simulated wafers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gateway.cli import asking
from services.common.dataset import open_dataset
from services.common.errors import InvalidArgumentError
from services.common.splitting import Split
from services.common.store import open_store
from services.common.task import Task
from services.common.wafer_set import WaferSet
from services.trainer.protocols import report
from services.trainer.protocols.command import PROTOCOLS, command_line, main
from services.trainer.protocols.few_shot import Pool, drawn_rows, few_shot, score_of
from services.trainer.protocols.full import among_defects, error_curve
from services.trainer.protocols.generated import differences, pair
from services.trainer.protocols.jobs import freeze, thinned
from services.trainer.protocols.label_noise import confident_joint, folds_of, repeats
from services.trainer.protocols.numbers import mean_interval
from services.trainer.protocols.pages import PAGES
from services.trainer.protocols.pages_of_checks import verdict
from services.trainer.protocols.several import exact_by_combination, exact_by_count, shown_sets
from services.trainer.protocols.split_set import split_set
from services.trainer.protocols.unknown import RelativeMahalanobis, unknown_of
from tests.quality import rivals
from tests.unit.trainer.wafers import simulated

# Keras 3.15 reads TensorFlow's variables in a way that NumPy 2 frowns at.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def pool(noise: float) -> Pool:
    """Three classes of unit vectors around three axes."""
    random = np.random.default_rng(0)

    def around(labels, copies):
        vectors = np.eye(6, dtype=np.float32)[labels][:, None] + noise * random.normal(size=(len(labels), copies, 6))
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    labels, truth = np.repeat(np.arange(3), 40), np.repeat(np.arange(3), 60)
    return Pool(("a", "b", "c"), around(labels, 4), labels, around(truth, 1)[:, 0], truth)


def wafer_set(patterns, lots, count=8):
    """Simulated wafers of some patterns; each lot holds wafers of every pattern."""
    grids = [grid for pattern in patterns for grid in simulated(pattern, count)[0]]
    labels = [pattern for pattern in patterns for _ in range(count)]
    return WaferSet(grids, labels, [f"lot-{index % lots}" for index in range(len(grids))])


def write(path, patterns, lots, count=8):
    wafers = wafer_set(patterns, lots, count)
    np.savez(
        path,
        dies=np.concatenate([grid.ravel() for grid in wafers.grids]),
        shapes=np.array([grid.shape for grid in wafers.grids]),
        labels=np.array(wafers.labels),
        group=np.array(wafers.groups),
    )
    return str(path)


def measured(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_no_lot_stands_on_two_sides_and_what_is_left_out_is_gone():
    wafers = split_set(wafer_set(["Center", "Loc", "none"], lots=8))
    sides = [set(wafers.lots_of(wafers.rows(side))) for side in Split]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 8
    known = wafers.without(["Loc"])
    assert known.classes == ("Center", "none")
    assert "Loc" not in known.names
    assert [known.classes[label] for label in known.labels] == known.names
    side_of = dict(zip(wafers.digests, wafers.sides, strict=True))
    assert [side_of[digest] for digest in known.digests] == list(known.sides)
    assert len(known.rows(Split.TEST)) + len(unknown_of(wafers, "Loc")) == len(wafers.rows(Split.TEST))
    with pytest.raises(InvalidArgumentError, match="Expected one of the classes Center, Loc, none"):
        wafers.without(["Donut"])


def test_thinning_takes_training_wafers_only():
    wafers = split_set(wafer_set(["Center", "none"], lots=8))
    few = thinned(wafers, 2, seed=1)
    assert np.bincount(few.labels[few.rows(Split.TRAIN)]).tolist() == [2, 2]
    for side in (Split.TUNE, Split.TEST):
        assert few.chosen(few.rows(side)).digests == wafers.chosen(wafers.rows(side)).digests
    assert thinned(wafers, None, seed=1) is wafers


def test_a_draw_takes_so_many_of_each_class():
    labels = np.repeat(np.arange(3), 10)
    assert np.bincount(labels[drawn_rows(labels, 3, 4, [0])]).tolist() == [4, 4, 4]
    assert np.bincount(labels[drawn_rows(labels, 3, [1, 20, 3], [0])]).tolist() == [1, 10, 3]
    assert drawn_rows(labels, 3, 4, [0]).tolist() != drawn_rows(labels, 3, 4, [1]).tolist()


def test_scores_of_draws_by_hand():
    # Draw 1: all right. Draw 2: one of two wafers of b called a, so F1 is 4/5 for a, 2/3 for b.
    matrices = np.array([[[2, 0], [0, 2]], [[2, 0], [1, 1]]])
    score = score_of(("a", "b"), 5, matrices, [1])
    assert score.class_f1 == {"a": pytest.approx((1 + 4 / 5) / 2), "b": pytest.approx((1 + 2 / 3) / 2)}
    assert score.class_recall == {"a": 1.0, "b": pytest.approx(0.75)}
    assert score.macro_f1 == pytest.approx((1 + (4 / 5 + 2 / 3) / 2) / 2)
    assert score.new_classes_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert score.new_classes_f1_spread == pytest.approx((1 - 2 / 3) / np.sqrt(2))
    assert score.confusion == [[4, 0], [1, 3]]


def test_more_wafers_teach_more_and_the_seed_decides():
    few, many = few_shot(pool(0.6), [1, 30], 5, seed=3)
    assert 1 / 3 < few.macro_f1 < many.macro_f1 < 1
    assert few.macro_f1_spread > 0
    assert many.macro_f1 == pytest.approx(np.mean(list(many.class_f1.values())))
    assert [few, many] == list(few_shot(pool(0.6), [1, 30], 5, seed=3))


def test_pairs_share_judges_and_wafers_of_another_class_harm():
    wafers = pool(0.4)
    rows = drawn_rows(wafers.labels, 3, 5, [0])
    without, same = pair(wafers, rows, np.zeros((0, 6), np.float32), np.zeros(0, np.int64), [0])
    assert np.array_equal(without, same)
    # "Generated" wafers of b that look like a.
    wrong = np.repeat(wafers.copies[:40, 0], 2, axis=0)
    before, after = pair(wafers, rows, wrong, np.ones(80, np.int64), [0])
    assert before.sum(axis=1).tolist() == after.sum(axis=1).tolist() == [60, 60, 60]
    assert np.array_equal(before, without)
    told = differences([(before, after)] * 3, wafers.classes, ["b"])
    assert told["class_f1"]["a"]["difference"] < -0.1
    assert told["class_f1"]["a"]["interval"][1] < 0


def test_differences_by_hand():
    right, half = np.array([[2, 0], [0, 2]]), np.array([[2, 0], [1, 1]])
    told = differences([(half, right), (half, right), (right, right)], ("a", "b"), ["b"])
    changes = np.array([1 / 3, 1 / 3, 0.0])
    of_b = told["targets_f1"]
    assert of_b["difference"] == pytest.approx(changes.mean())
    half_width = 4.303 * changes.std(ddof=1) / np.sqrt(3)
    assert of_b["interval"] == pytest.approx((changes.mean() - half_width, changes.mean() + half_width))
    assert verdict(of_b["interval"]) == "no difference shown"
    assert verdict((0.01, 0.2)) == "helps"
    assert verdict((-0.2, -0.01)) == "harms"
    assert mean_interval([1.0]) is None


def test_accepted_among_defects_and_the_error_curve_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], np.float32)
    labels, accepted = np.array([0, 1, 0, 1]), np.array([True, True, True, False])
    told = among_defects(probabilities, labels, accepted, ("none", "Loc"), "none")
    assert (told.wafers, told.share, told.error) == (3, pytest.approx(2 / 3), 0.5)
    assert among_defects(probabilities, labels, accepted, ("a", "b"), "none").wafers == 4
    curve = dict(error_curve(probabilities, labels))
    assert curve[0.5] == 0.0
    assert curve[0.75] == pytest.approx(1 / 3)
    assert curve[1.0] == 0.25


def test_the_confident_joint_by_hand():
    # Thresholds: class 0 mean(.9, .8, .1) = .6, class 1 mean(.9, .7) = .8.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9], [0.3, 0.7]], np.float32)
    joint = confident_joint(probabilities, np.array([0, 0, 0, 1, 1]))
    # The last wafer reaches no threshold; the row of class 1 is scaled to its two wafers all the same.
    assert joint == pytest.approx(np.array([[2.0, 1.0], [0.0, 2.0]]))


def test_repeats_with_different_labels_are_counted():
    one, other = np.full((2, 2), 1, np.uint8), np.full((2, 2), 2, np.uint8)
    wafers = split_set(WaferSet([one, one, one, other, other, one.T[:1]], ["a", "a", "b", "c", "c", "a"]))
    told = repeats(wafers)
    assert (told.wafers, told.repeated, told.groups) == (6, 5, 2)
    assert (told.contradicting, told.contradicting_groups, told.least_wrong) == (3, 1, 1)
    assert told.pairs == [("a", "b", 1)]


def test_folds_keep_lots_whole():
    wafers = split_set(wafer_set(["Center", "none"], lots=6))
    folds = folds_of(wafers, 3, seed=0)
    assert set(folds) == {0, 1, 2}
    assert len({(lot, fold) for lot, fold in zip(wafers.lots, folds, strict=True)}) == 6
    with pytest.raises(InvalidArgumentError, match="2 to 6 folds"):
        folds_of(wafers, 7, seed=0)


def test_relative_mahalanobis_is_larger_off_all_classes():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 200)
    centres = np.array([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]], np.float32)
    known = (centres[labels] + 0.3 * random.normal(size=(400, 3))).astype(np.float32)
    score = RelativeMahalanobis(known, labels, 2)
    assert score.of(np.array([[0.0, 0.0, 0.0]], np.float32))[0] > np.quantile(score.of(known), 0.99)


def test_few_shot_measures_a_wafer_set(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "Scratch", "none"], lots=8)
    told = measured(
        capsys, "few-shot", "--wafers", path, "--sizes", "3", "--draws", "2", "--new-classes", "Center", "Scratch"
    )
    score = told["scores"][0]
    assert score["macro_f1"] > 0.5
    assert set(score["class_f1"]) == {"Center", "Scratch", "none"}
    new = (score["class_f1"]["Center"] + score["class_f1"]["Scratch"]) / 2
    assert score["new_classes_f1"] == pytest.approx(new)
    assert np.sum(score["confusion"]) == 2 * told["test_wafers"]
    assert told["command"].startswith("python -m services.trainer.protocols few-shot --wafers set.npz --sizes 3")


def test_full_does_a_whole_job_and_keeps_its_result(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "Edge-Ring", "none"], lots=9, count=18)
    keep = tmp_path / "results" / "full.json"
    told = measured(
        capsys, "full", "--wafers", path, "--epochs", "4", "--no-fine-tune", "--seeds", "0", "1", "--wafers-per-class",
        "6", "--keep", str(keep), "--title", "Small",
    )  # fmt: skip
    run = told["runs"][1]
    assert [each["seed"] for each in told["runs"]] == [0, 1]
    assert told["training_wafers"] == 18
    assert np.sum(run["confusion"]) == told["test_wafers"] == run["parity_wafers"] > 0
    assert run["parity_max_difference"] <= 1e-4
    assert told["mean"]["macro_f1"] > 0.6
    assert json.loads(keep.read_text())["title"] == "Small"


def test_unknown_leaves_each_class_out_in_turn(tmp_path, capsys):
    patterns = ["Center", "Edge-Ring", "Scratch", "none"]
    path = write(tmp_path / "set.npz", patterns, lots=9, count=18)
    told = measured(
        capsys, "unknown", "--wafers", path, "--epochs", "4", "--no-fine-tune", "--seeds", "0", "--classes", "Scratch"
    )
    wafers = split_set(wafer_set(patterns, lots=9, count=18))
    (run,) = told["runs"]
    assert run["unknown_wafers"] == len(unknown_of(wafers, "Scratch")) > 0
    assert run["known_wafers"] == len(wafers.rows(Split.TEST)) - run["unknown_wafers"]
    assert all(0 <= value <= 1 for value in run["auroc"].values())
    assert run["auroc"]["graph's novelty"] > 0.5
    assert told["scores"]["softmax"]["worst"] == pytest.approx(run["auroc"]["softmax"])


def test_exact_match_by_hand():
    patterns = ("Center", "Loc", "none")
    told = shown_sets(np.array([[0.9, 0.6, 0.0], [0.9, 0.2, 0.1], [0.4, 0.3, 0.9]], np.float32), patterns)
    assert told == [{"Center", "Loc"}, {"Center"}, set()]
    names = ["Center+Loc", "Center+Loc", "none"]
    assert exact_by_count(names, told) == {"0": 1.0, "2": 0.5}
    assert exact_by_combination(names, told) == {"Center+Loc": 0.5, "none": 1.0}


def test_labels_are_taken_apart_for_several_patterns(tmp_path):
    grids = simulated("Center", 8)[0]
    wafers = split_set(WaferSet(grids, ["Center+Loc", "Loc", "none", "Center+Loc"] * 2))
    store = open_store(str(tmp_path))
    freeze(store, "set", wafers, np.arange(8), Task.SEVERAL)
    with open_dataset(store, "set") as dataset:
        assert [each.class_id for each in dataset.classes] == ["Center", "Loc", "none"]
        shown = ["+".join(wafer.class_ids) for wafer in dataset.iter_wafers()]
    assert shown == wafers.names


def test_generated_pairs_with_the_generator_s_own_program(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "Scratch", "none"], lots=8)
    told = measured(
        capsys, "generated", "--wafers", path, "--sizes", "3", "--draws", "2", "--count", "4", "--classes", "Scratch",
        "--others", "4", "--methods", "variations",
    )  # fmt: skip
    (score,) = told["scores"]
    assert (score["method"], score["wafers_per_class"]) == ("variations", 3)
    changed = score["class_f1"]["Scratch"]
    assert changed["with_generated"] - changed["without"] == pytest.approx(changed["difference"], abs=1e-9)
    assert changed == score["targets_f1"]


def test_a_learned_generator_needs_twenty_wafers(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "none"], lots=8)
    assert main(["generated", "--wafers", path, "--sizes", "5", "--methods", "learned"]) == 1
    assert "at least 20" in capsys.readouterr().err


def test_label_noise_measures_lots_that_pretraining_did_not_see_apart(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "Scratch", "none"], lots=8)
    told = measured(capsys, "label-noise", "--wafers", path, "--folds", "3")
    assert told["all_lots"]["wafers"] == 24
    assert 0 < told["lots_unseen_by_pretraining"]["wafers"] < 24
    assert np.sum(told["all_lots"]["joint"]) == pytest.approx(24, abs=0.5)
    assert 0 < told["all_lots"]["ceiling"] <= 1


def test_an_ablation_names_its_rows(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "none"], lots=8)
    assert main(["ablation", "--wafers", path, "--rows", "shipped"]) == 1
    assert "NAME=FOLDER" in capsys.readouterr().err
    assert main(["ablation", "--wafers", path, "--rows", f"nothing={tmp_path}"]) == 1
    assert "wafer-fast.npz is missing" in capsys.readouterr().err


def test_one_class_cannot_be_measured(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center"], lots=4)
    assert main(["few-shot", "--wafers", path]) == 1
    assert "two classes" in capsys.readouterr().err


def test_a_class_in_one_lot_cannot_be_judged(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "none"], lots=1)
    assert main(["few-shot", "--wafers", path]) == 1
    assert "other lots" in capsys.readouterr().err


def test_a_rival_is_judged_by_the_same_wafers(tmp_path, capsys):
    path = write(tmp_path / "set.npz", ["Center", "Edge-Ring", "none"], lots=9, count=18)
    keep = tmp_path / "rival.json"
    assert rivals.main(["full", "cnn", "--wafers", path, "--steps", "3", "--batch-size", "8", "--keep", str(keep)]) == 0
    result = json.loads(keep.read_text())
    wafers = split_set(wafer_set(["Center", "Edge-Ring", "none"], lots=9, count=18))
    assert result["rival"] is True
    assert result["test_wafers"] == np.sum(result["runs"][0]["confusion"]) == len(wafers.rows(Split.TEST))
    assert "| Plain CNN from scratch |" in report.page_of("full", [result])


def test_the_command_line_offers_every_protocol():
    assert set(asking.PROTOCOLS) == set(PROTOCOLS) == set(PAGES)


def test_commands_are_told_without_folders_of_this_machine():
    told = command_line(["few-shot", "--wafers", "/data/set.npz", "--keep", "/out/a.json", "--title", "A b", "--json"])
    assert told == "python -m services.trainer.protocols few-shot --wafers set.npz"


def kept(macro, spread):
    """A kept few-shot result."""
    score = score_of(("a", "b"), 5, np.array([[[2, 0], [1, 1]]] * 2), [])
    fields = {name: getattr(score, name) for name in score.__slots__} | {"macro_f1": macro, "macro_f1_spread": spread}
    return {
        "protocol": "few-shot", "title": "Fast", "command": "repeat me", "classes": ["a", "b"], "new_classes": [],
        "test_wafers": 4, "test_lots": 2, "seed": 0, "scores": [fields],
    }  # fmt: skip


def test_the_report_compares_with_targets_and_keeps_notes(tmp_path):
    pytest.importorskip("matplotlib")
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    (results / "few-shot-1.json").write_text(report.readable_json(kept(0.91, 0.01)))
    report.write_pages(results, out)
    assert (
        "| P2a | Fast: macro-F1 from 5 wafers a class | 0.910 | 0.010 | ≥ 0.900 | yes |"
        in (out / "README.md").read_text()
    )
    page = (out / "few-shot.md").read_text()
    assert "| Fast | 0.910 ± 0.010 |" in page
    assert "plots/few-shot.svg" in page
    assert (out / "plots" / "few-shot.svg").read_text().startswith("<?xml")
    (out / "few-shot.md").write_text(f"{page}\n## Notes\n\nWritten by a person.\n")
    (results / "few-shot-1.json").write_text(report.readable_json(kept(0.895, 0.01)))
    report.write_pages(results, out)
    assert "no, inside the spread" in (out / "README.md").read_text()
    assert (out / "few-shot.md").read_text().endswith("## Notes\n\nWritten by a person.\n")


def test_the_report_refuses_what_is_no_result(tmp_path):
    (tmp_path / "odd.json").write_text('{"protocol": "astrology"}')
    with pytest.raises(InvalidArgumentError, match=r"odd\.json"):
        report.read_results(tmp_path)
    with pytest.raises(InvalidArgumentError, match="Measure first"):
        report.write_pages(tmp_path / "nothing", tmp_path)
