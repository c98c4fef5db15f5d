import io

import numpy as np
import pytest

from services.common.formats import read_wafers


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


MAPS = np.random.default_rng(0).integers(0, 3, (3, 6, 5)).astype(np.uint8)


def test_wafer_set_with_lots() -> None:
    report = read_wafers(
        "s.npz",
        npz(
            dies=MAPS.ravel(),
            shapes=np.array([[6, 5]] * 3),
            labels=np.array(["a", "b", ""]),
            group=np.array(["l1", "l1", ""]),
        ),
    )
    assert report.format_name == "wafer set"
    assert [each.label for each in report.wafers] == ["a", "b", None]
    assert [each.map.identity.lot for each in report.wafers] == ["l1", "l1", ""]
    assert all(np.array_equal(each.map.dies, grid) for each, grid in zip(report.wafers, MAPS, strict=True))


@pytest.mark.parametrize("key", ["arr_0", "x", "maps", "waferMap"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_one_array_of_maps(key: str, dtype: type) -> None:
    report = read_wafers("m.npz", npz(**{key: MAPS.astype(dtype), "labels": np.array(["a", "b", "c"])}))
    assert [each.label for each in report.wafers] == ["a", "b", "c"]
    assert all(np.array_equal(each.map.dies, grid) for each, grid in zip(report.wafers, MAPS, strict=True))


def test_padded_maps_are_cut_to_their_shapes() -> None:
    report = read_wafers("m.npz", npz(dies=MAPS, shapes=np.array([[2, 3], [6, 5], [4, 4]])))
    assert [each.map.dies.shape for each in report.wafers] == [(2, 3), (6, 5), (4, 4)]


def test_labels_as_numbers_columns_and_names() -> None:
    columns = np.eye(8, dtype=np.int64)[[1, 6, 0]]
    columns[1, 2] = 1
    columns[2] = 0
    report = read_wafers("m.npz", npz(arr_0=MAPS, arr_1=columns))
    assert [each.label for each in report.wafers] == ["Donut", "Edge-Loc+Scratch", "none"]
    assert "MixedWM38" in report.warnings[0]
    report = read_wafers("m.npz", npz(x=MAPS, y=np.array([[2], [0], [7]])))
    assert [each.label for each in report.wafers] == ["class 2", "class 0", "class 7"]
    report = read_wafers("m.npz", npz(x=MAPS, y=np.array([1, 0, 7]), class_names=np.array(["A", "B"])))
    assert [each.label for each in report.wafers] == ["B", "A", "class 7"]


def test_channels_and_single_maps() -> None:
    one_hot = np.eye(3, dtype=np.uint8)[MAPS]
    for maps in (one_hot, MAPS[..., None]):
        report = read_wafers("m.npz", npz(x=maps))
        assert all(np.array_equal(each.map.dies, grid) for each, grid in zip(report.wafers, MAPS, strict=True))
    report = read_wafers("m.npz", npz(w1=MAPS[0], w2=MAPS[1]))
    assert [each.source_name for each in report.wafers] == ["m.npz#w1", "m.npz#w2"]


def test_bad_wafers_are_left_out_with_a_reason() -> None:
    maps = MAPS.astype(np.float32)
    maps[0, 0, 0] = np.nan
    maps[1, 0, 0] = 3
    report = read_wafers("m.npz", npz(x=maps))
    assert len(report.wafers) == 1
    assert [each.name for each in report.skipped] == ["m.npz#0", "m.npz#1"]
    assert "nan" in report.skipped[0].reason
    negative = MAPS.astype(np.int16)
    negative[2, 1, 1] = -1
    assert [each.name for each in read_wafers("m.npz", npz(x=negative)).skipped] == ["m.npz#2"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.ones((2, 3, 4, 5), np.uint8)},
        {"x": MAPS, "z": MAPS},
        {"x": np.ones(4, np.uint8)},
        {"x": MAPS, "y": np.array([np.nan, 1, 2])},
        {"x": np.zeros((2, 0, 5), np.uint8)},
        {"x": np.zeros((2, 5, 5), np.uint8)},
        {"x": np.ones((1, 1025, 5), np.uint8)},
        {"x": np.ones((2, 3, 4), complex)},
        {"labels": np.array(["a"])},
    ],
)
def test_files_without_a_wafer_say_why(arrays: dict) -> None:
    report = read_wafers("m.npz", npz(**arrays))
    assert report.wafers == []
    assert all(len(each.reason) > 20 for each in report.skipped)
    assert report.skipped
