"""Files and folders become wafers with classes, and data set versions."""

import numpy as np
import pytest

from gateway.cli.wafers import TaughtWafers, class_id, dataset_classes, freeze, read_asked, read_taught
from gateway.values import Task
from services.common.dataset import Split, open_dataset
from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.common.store import open_store
from services.common.wafer_set import write_wafer_set


def wafers(count, seed=0):
    return list(np.random.default_rng(seed).integers(1, 3, (count, 9, 11)).astype(np.uint8))


@pytest.fixture
def wafer_set(tmp_path):
    path = tmp_path / "wafers.npz"
    labels = ["none", "Center"] * 15
    groups = [f"lot{index // 3}" for index in range(30)]
    sources = ["A"] * 20 + ["B"] * 10
    write_wafer_set(path, wafers(30), labels=labels, groups=groups, sources=sources)
    return path


def test_a_wafer_set_gives_labels_and_lots(wafer_set):
    taught = read_taught(wafer_set)
    assert len(taught) == 30
    assert taught.labels[:2] == ["none", "Center"]
    assert taught.lots[0] == "A/lot0"
    assert np.array_equal(taught.grids[0], wafers(30)[0])


def test_one_source_can_be_chosen(wafer_set):
    taught = read_taught(wafer_set, "B")
    assert len(taught) == 10
    assert taught.lots[-1] == "lot9"
    with pytest.raises(InvalidArgumentError, match=r"\(A, B\).*'C'"):
        read_taught(wafer_set, "C")


def test_a_folder_a_class_labels_its_files_whatever_they_say(tmp_path):
    for name in ("Center", "내 결함"):
        (tmp_path / name / "deep").mkdir(parents=True)
        write_wafer_set(tmp_path / name / "deep" / "some.npz", wafers(3), labels=["other"] * 3)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "Center" / "notes.txt").write_text("not a wafer")
    taught = read_taught(tmp_path)
    assert sorted(set(taught.labels)) == ["Center", "내 결함"]
    assert len(taught) == 6
    assert [each.name for each in taught.skipped] == ["Center/notes.txt"]


def test_files_beside_class_folders_carry_their_own_labels(tmp_path, wafer_set):
    taught = read_taught(tmp_path)
    assert len(taught) == 30
    assert set(taught.labels) == {"none", "Center"}


def test_a_die_list_without_labels_is_told(tmp_path):
    path = tmp_path / "dies.csv"
    path.write_text("x,y,bin\n" + "".join(f"{x},{y},1\n" for x in range(5) for y in range(5)))
    with pytest.raises(InvalidArgumentError, match=r"without any") as caught:
        read_taught(path)
    assert caught.value.reason == "NO_WAFERS"


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        read_taught(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="nowhere"):
        read_asked([tmp_path / "nowhere"])


def test_asked_wafers_are_named_and_damaged_files_told(wafer_set, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found, skipped = read_asked([wafer_set, tmp_path / "bad.png"])
    assert len(found) == 30
    assert found[3][0] == f"{wafer_set}#3"
    assert [each.name for each in skipped] == ["bad.png"]


def test_classes_have_stable_ids_and_none_comes_first():
    classes = dataset_classes(["Scratch", "none", "내 결함", "Center", "none"])
    assert [each.display_name for each in classes] == ["none", "Center", "Scratch", "내 결함"]
    assert [each.class_id for each in classes[:3]] == ["none", "Center", "Scratch"]
    assert classes[3].class_id == class_id("내 결함") != class_id("내 결함 2")
    assert [each.pattern for each in classes] == ["none", "Center", "Scratch", ""]


def test_freezing_holds_lots_back_and_keeps_every_wafer(tmp_path, wafer_set):
    store = open_store((tmp_path / "store").as_uri())
    taught = read_taught(wafer_set)
    frozen = freeze(store, taught, hold_back=True)
    dataset = open_dataset(store, frozen.dataset_id)
    sides = {}
    for wafer in dataset.iter_wafers():
        sides.setdefault(wafer.lot, set()).add(wafer.split)
    assert all(len(each) == 1 for each in sides.values())
    assert {side for each in sides.values() for side in each} == set(Split)
    assert sum(sum(counts.values()) for counts in frozen.counts.values()) == len(taught)


def test_parents_of_generated_wafers_all_stand_in_training(tmp_path, wafer_set):
    store = open_store((tmp_path / "store").as_uri())
    frozen = freeze(store, read_taught(wafer_set), hold_back=False)
    assert {wafer.split for wafer in open_dataset(store, frozen.dataset_id).iter_wafers()} == {Split.TRAIN}


def test_labels_joined_by_plus_show_both_classes_where_wafers_may(tmp_path):
    taught = TaughtWafers()
    labels = ("Center", "Scratch+center", "none", "Center+Scratch", "none+Scratch")
    for index, grid in enumerate(wafers(20)):
        taught.add(grid, labels[index % 5], f"L{index // 2}")
    store = open_store((tmp_path / "store").as_uri())
    frozen = freeze(store, taught, hold_back=True, task=Task.SEVERAL)
    assert [each.display_name for each in frozen.classes] == ["none", "Center", "Scratch"]
    found = list(open_dataset(store, frozen.dataset_id).iter_wafers())
    assert [each.class_ids for each in found[:5]] == [
        ("Center",),
        ("Scratch", "Center"),
        ("none",),
        ("Center", "Scratch"),
        ("Scratch",),
    ]
    assert sum(frozen.counts["Scratch"].values()) == 12
    # Elsewhere it is a name like any other.
    single = freeze(store, taught, hold_back=True)
    assert "Center+Scratch" in {each.display_name for each in single.classes}


def test_only_normal_wafers_are_needed_and_only_they_teach(tmp_path):
    taught = TaughtWafers()
    for index, grid in enumerate(wafers(40)):
        taught.add(grid, "normal", f"L{index // 2}")
    store = open_store((tmp_path / "store").as_uri())
    assert len(freeze(store, taught, hold_back=True, task=Task.NORMAL).classes) == 1
    for index, grid in enumerate(wafers(10, seed=1)):
        taught.add(grid, "Scratch", f"S{index}")
    frozen = freeze(store, taught, hold_back=True, task=Task.NORMAL)
    assert frozen.counts["Scratch"] == {"train": 0, "tune": 5, "test": 5}
    assert all(frozen.counts["normal"].values())


def test_without_normal_wafers_they_cannot_teach(tmp_path):
    taught = TaughtWafers()
    for grid in wafers(6):
        taught.add(grid, "Scratch", "")
    with pytest.raises(FailedPreconditionError) as refused:
        freeze(open_store((tmp_path / "store").as_uri()), taught, hold_back=True, task=Task.NORMAL)
    assert refused.value.reason == "NO_NORMAL_WAFERS"


def test_one_class_cannot_be_taught(tmp_path):
    taught = TaughtWafers()
    for grid in wafers(6):
        taught.add(grid, "none", "")
    with pytest.raises(FailedPreconditionError, match="two classes"):
        freeze(open_store((tmp_path / "store").as_uri()), taught, hold_back=True)
