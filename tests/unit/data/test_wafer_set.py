import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgumentError, NotFoundError
from services.common.wafer_set import GridSequence, WaferSetWriter, read_wafer_set, write_wafer_set
from tests.unit.data.strategies import grids, texts

GRIDS = [np.array([[0, 1], [2, 1]], np.uint8), np.array([[1, 2, 1]], np.uint8)]


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def with_member(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(grids(), texts.filter(lambda text: not text.endswith("\0"))), max_size=8))
def test_written_and_read(tmp_path_factory: pytest.TempPathFactory, wafers: list) -> None:
    path = tmp_path_factory.mktemp("set") / "set.npz"
    write_wafer_set(path, [grid for grid, _ in wafers], labels=[text for _, text in wafers])
    back = read_wafer_set(path)
    assert len(back) == len(wafers)
    assert back.labels == [text for _, text in wafers]
    assert back.groups is None
    assert all(np.array_equal(got, grid) for got, (grid, _) in zip(back.grids, wafers, strict=True))
    assert list(path.parent.iterdir()) == [path]


def test_grids_behave_like_a_list() -> None:
    back = read_wafer_set(npz(dies=np.concatenate([g.ravel() for g in GRIDS]), shapes=[g.shape for g in GRIDS]))
    assert np.array_equal(back.grids[-1], GRIDS[1])
    assert [grid.shape for grid in back.grids[:]] == [(2, 2), (1, 3)]
    assert len(list(back.grids)) == 2
    with pytest.raises(IndexError):
        back.grids[2]
    with pytest.raises(ValueError, match="read-only"):
        back.grids[0][0, 0] = 1


def test_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_wafer_set(path, GRIDS, labels=["a", "한글"], groups=["l1", "l2"], sources=["x", "y"])
    back = read_wafer_set(str(path))
    assert (back.labels, back.groups, back.sources) == (["a", "한글"], ["l1", "l2"], ["x", "y"])


def test_byte_strings_are_read_as_utf8() -> None:
    dies, shapes = np.ones(4, np.uint8), [[2, 2]]
    assert read_wafer_set(npz(dies=dies, shapes=shapes, labels=np.array(["É".encode()]))).labels == ["É"]
    with pytest.raises(InvalidArgumentError):
        read_wafer_set(npz(dies=dies, shapes=shapes, labels=np.array([b"\xff\xfe"])))


GOOD = {"dies": np.ones(4, np.uint8), "shapes": np.array([[2, 2]])}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"hello",
        npz(**GOOD)[:-30],
        npz(**GOOD)[:60],
        npz(dies=np.ones(4, np.uint8)),
        npz(**{**GOOD, "dies": np.ones(4)}),
        npz(**{**GOOD, "dies": np.ones(5, np.uint8)}),
        npz(**{**GOOD, "dies": np.full(4, 3, np.uint8)}),
        npz(**{**GOOD, "shapes": np.array([[2.0, 2.0]])}),
        npz(**{**GOOD, "shapes": np.array([[0, 4]])}),
        npz(**{**GOOD, "shapes": np.array([[-2, -2]])}),
        npz(**{**GOOD, "shapes": np.array([[1 << 40, 1 << 40]])}),
        npz(**{**GOOD, "shapes": np.array([2, 2])}),
        npz(**GOOD, labels=np.array(["a", "b"])),
        npz(**GOOD, labels=np.array([1.5])),
        npz(**GOOD, labels=np.array([{"a": 1}], object)),
        with_member("dies.npy", header("(4,)", "'|O'")),
        with_member("dies.npy", header("(-4,)")),
        with_member("dies.npy", header("(4,)") + b"\1"),
        with_member("dies.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"x" * 70_000),
        with_member("../dies.txt", b"x"),
        with_member("dies.npy", header("(__import__('os').getpid(),)")),
    ],
)
def test_bad_files_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_wafer_set(data)
    assert len(caught.value.message) > 20


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = with_member("dies.npy", header("(70368744177664,)"))
    with pytest.raises(InvalidArgumentError, match="70,368,744,177,664"):
        read_wafer_set(bomb)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    with pytest.raises(InvalidArgumentError):
        read_wafer_set(npz(**GOOD, labels=np.array([Trap()], object)))
    assert not (tmp_path / "sprung").exists()


def test_damaged_content_is_told_from_its_checksum() -> None:
    data = bytearray(npz(dies=np.random.default_rng(0).integers(0, 3, 4000).astype(np.uint8), shapes=[[50, 80]]))
    data[300] ^= 0xFF
    with pytest.raises(InvalidArgumentError, match="damaged"):
        read_wafer_set(bytes(data))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_wafer_set(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "values", [{"labels": ["a"]}, {"grids": [np.zeros((2, 2), np.uint8)]}, {"labels": ["a", "b\0"]}]
)
def test_bad_wafers_are_not_written(tmp_path: Path, values: dict) -> None:
    with pytest.raises(InvalidArgumentError):
        write_wafer_set(tmp_path / "a.npz", **{"grids": GRIDS, **values})
    assert list(tmp_path.iterdir()) == []


def test_grids_share_an_array_and_come_in_runs_of_one_shape() -> None:
    grids = [np.full(shape, index, np.uint8) for index, shape in enumerate([(2, 3), (2, 3), (3, 2), (2, 3)])]
    shared = GridSequence.of(grids)
    assert GridSequence.of(shared) is shared
    assert all(np.array_equal(one, other) for one, other in zip(shared, grids, strict=True))
    assert shared.offsets.tolist() == [0, 6, 12, 18, 24]
    runs = list(shared.runs())
    assert [places for places, _ in runs] == [slice(0, 2), slice(2, 3), slice(3, 4)]
    assert [run.shape for _, run in runs] == [(2, 2, 3), (1, 3, 2), (1, 2, 3)]
    runs[0][1][1] = 9
    assert (shared[1] == 9).all()
    assert list(GridSequence.of([]).runs()) == []


@pytest.mark.data
def test_real_wafers(data_folder: Path) -> None:
    wafers = read_wafer_set(data_folder / "wafers_small.npz")
    assert len(wafers) == 540
    assert wafers.labels is not None
    assert {"none", "Scratch", "Near-full"} <= set(wafers.labels)


def test_wafers_may_be_added_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with WaferSetWriter(path) as writer:
        writer.add(GRIDS, labels=["a", "b"])
        writer.add([], labels=[])
        writer.add(GRIDS[:1], labels=["a longer\n한글"])
        with pytest.raises(InvalidArgumentError, match="same lists"):
            writer.add(GRIDS[:1])
        with pytest.raises(InvalidArgumentError, match="Received: 9"):
            writer.add([np.full((2, 2), 9, np.uint8)], labels=["c"])
        assert list(tmp_path.iterdir()) == []
        size = writer.finish()
    whole = np.load(path)
    assert size == sum(whole[name].nbytes for name in whole.files)
    back = read_wafer_set(path)
    assert (writer.wafers, back.labels) == (3, ["a", "b", "a longer\n한글"])
    assert all(np.array_equal(*pair) for pair in zip(back.grids, [*GRIDS, GRIDS[0]], strict=True))


def test_writing_takes_no_more_memory_for_more_wafers(tmp_path: Path) -> None:
    grids = [np.ones((50, 50), np.uint8)] * 20

    def peak(batches: int) -> int:
        tracemalloc.start()
        with WaferSetWriter(tmp_path / "a.npz") as writer:
            for number in range(batches):
                writer.add(grids, labels=[f"label {number}"] * 20, groups=[f"lot {number}"] * 20)
            writer.finish()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    # 20,000 wafers are 50 MB of dies.
    assert peak(1000) < peak(250) + (1 << 20)
