"""Data set versions on every store: complete or invisible, unchanged or refused."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.dataset import (
    Dataset,
    DatasetClass,
    DatasetManifest,
    DatasetWafer,
    DatasetWriter,
    GeneratedWafers,
    Origin,
    Split,
    new_dataset_id,
    open_dataset,
    read_manifest,
)
from services.common.errors import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError
from services.common.files import file_sha256
from services.common.splitting import split_by_lot
from services.common.store import BlobStore, open_store
from services.common.wafer_set import GridSequence, read_wafer_set
from tests.unit.data.strategies import grids, texts

CLASSES = (DatasetClass("c1", "Donut", "Donut"), DatasetClass("c2", "스크래치"), DatasetClass("c3", "none", "none"))


def wafer(number: int, split: Split = Split.TRAIN, class_id: str = "c1", **values: object) -> DatasetWafer:
    random = np.random.default_rng(number)
    dies = random.integers(0, 3, random.integers(3, 30, 2)).astype(np.uint8)
    return DatasetWafer(
        **{  # type: ignore[arg-type]
            "wafer_id": f"w{number}",
            "dies": dies,
            "class_id": class_id,
            "lot": f"lot-{split}",
            "origin": Origin.UPLOADED,
            "split": split,
            **values,
        }
    )


def freeze(store: BlobStore, wafers: list[DatasetWafer], dataset_id: str = "", **values: str) -> DatasetManifest:
    with DatasetWriter(store, dataset_id or new_dataset_id(), CLASSES, **values) as writer:
        writer.add(wafers)
        return writer.finish()


def check_equal(dataset: Dataset, wafers: list[DatasetWafer]) -> None:
    back = list(dataset.iter_wafers())
    assert len(back) == len(wafers)
    for got, given_ in zip(back, wafers, strict=True):
        assert np.array_equal(got.dies, given_.dies)
        for name in ("wafer_id", "class_id", "lot", "origin", "parent_id", "split", "also"):
            assert getattr(got, name) == getattr(given_, name)


def test_frozen_and_opened(store: BlobStore, another: BlobStore) -> None:
    wafers = [
        *(wafer(n, Split.TRAIN, "c1") for n in range(40)),
        *(wafer(n, Split.TEST, "c2") for n in range(40, 60)),
        *(wafer(n, Split.TUNE, "c3", lot="") for n in range(60, 65)),
        wafer(65, origin=Origin.VARIATION, parent_id="w0"),
    ]
    manifest = freeze(store, wafers, parent="datasetVersions/earlier")
    dataset = open_dataset(another, manifest.name)
    assert dataset.manifest == manifest == read_manifest(another, manifest.dataset_id)
    assert manifest.counts["c1"] == {Split.TRAIN: 41, Split.TUNE: 0, Split.TEST: 0}
    assert manifest.origins == {Origin.UPLOADED: 65, Origin.VARIATION: 1}
    assert (manifest.wafers, manifest.lots, manifest.parent) == (66, 2, "datasetVersions/earlier")
    assert dataset.classes == CLASSES
    check_equal(dataset, wafers)
    assert dataset.labels(Split.TEST).tolist() == [1] * 20
    assert len(dataset.labels()) == 66
    assert [grid.shape for grid in dataset.grids(Split.TUNE)] == [each.dies.shape for each in wafers[60:65]]
    assert set(dataset.lots(Split.TUNE)) == {""}
    assert dataset.texts("wafer_id", Split.TUNE) == [f"w{n}" for n in range(60, 65)]


def test_wafers_that_show_several_classes_count_for_each_of_them(store: BlobStore) -> None:
    wafers = [
        wafer(1, also=("c2",)),
        wafer(2, Split.TEST, "c2"),
        wafer(3, Split.TEST, "c2", also=("c1",)),
        wafer(4, class_id="c3"),
    ]
    manifest = freeze(store, wafers)
    assert manifest.wafers == 4
    assert manifest.counts == {
        "c1": {Split.TRAIN: 1, Split.TUNE: 0, Split.TEST: 1},
        "c2": {Split.TRAIN: 1, Split.TUNE: 0, Split.TEST: 2},
        "c3": {Split.TRAIN: 1, Split.TUNE: 0, Split.TEST: 0},
    }
    check_equal(open_dataset(store, manifest.dataset_id), wafers)
    assert [each.class_ids for each in open_dataset(store, manifest.dataset_id).iter_wafers(Split.TEST)] == [
        ("c2",),
        ("c2", "c1"),
    ]


def test_a_file_written_before_wafers_could_show_several_classes_is_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    wafers = [wafer(n) for n in range(5)]
    manifest = freeze(store, wafers)
    path = tmp_path / "old.parquet"
    path.write_bytes(store.get(f"datasets/{manifest.dataset_id}/wafers.parquet"))
    pq.write_table(pq.read_table(path).drop_columns(["also"]), path)
    old = json.loads(store.get(f"datasets/{manifest.dataset_id}/manifest.json"))
    old["file"] = {**old["file"], "sha256": file_sha256(path), "size_bytes": path.stat().st_size}
    store.put(f"datasets/{manifest.dataset_id}/wafers.parquet", path.read_bytes())
    store.put(f"datasets/{manifest.dataset_id}/manifest.json", json.dumps(old).encode())
    check_equal(open_dataset(store, manifest.dataset_id), wafers)


def test_the_file_is_plain_parquet_in_small_row_groups(store: BlobStore, tmp_path: Path) -> None:
    manifest = freeze(store, [wafer(n) for n in range(2500)])
    path = tmp_path / "copy.parquet"
    path.write_bytes(store.get(f"datasets/{manifest.dataset_id}/wafers.parquet"))
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        assert groups == [1024, 1024, 452]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    dataset = open_dataset(store, manifest.dataset_id)
    assert [batch.num_rows for batch in dataset.iter_batches(["class_id"], batch_size=1000)] == [1000, 1000, 500]
    assert list(next(dataset.iter_batches(["lot", "rows"])).schema.names) == ["lot", "rows"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(grids(), texts, st.sampled_from(CLASSES), st.sampled_from(list(Origin))), min_size=1))
def test_random_wafers_round_trip(tmp_path: Path, rows: list) -> None:
    store = open_store(str(tmp_path / uuid.uuid4().hex))
    wafers = [
        DatasetWafer(f"w{n}", dies, each.class_id, lot, origin) for n, (dies, lot, each, origin) in enumerate(rows)
    ]
    check_equal(open_dataset(store, freeze(store, wafers).dataset_id), wafers)


def test_abandoned_and_failed_writers_leave_nothing(store: BlobStore) -> None:
    with DatasetWriter(store, "abandoned", CLASSES) as writer:
        writer.add([wafer(n) for n in range(1500)])
    with contextlib.suppress(RuntimeError), DatasetWriter(store, "failed", CLASSES) as writer:
        writer.add([wafer(1)])
        raise RuntimeError
    assert store.list() == []
    with pytest.raises(NotFoundError) as caught:
        open_dataset(store, "abandoned")
    assert caught.value.name == "datasetVersions/abandoned"


def test_a_version_is_never_replaced(store: BlobStore, another: BlobStore) -> None:
    first = freeze(store, [wafer(1)], "same-id")
    with pytest.raises(AlreadyExistsError):
        freeze(another, [wafer(2), wafer(3)], "same-id")
    with pytest.raises(AlreadyExistsError):
        freeze(another, [wafer(1)], "same-id")
    assert open_dataset(store, "same-id").manifest == first


def test_a_file_without_manifest_is_invisible_and_not_overwritten(store: BlobStore) -> None:
    store.put("datasets/half/wafers.parquet", b"what a killed writer left")
    with pytest.raises(NotFoundError):
        open_dataset(store, "half")
    with pytest.raises(AlreadyExistsError):
        freeze(store, [wafer(1)], "half")


def test_damage_is_told(store: BlobStore) -> None:
    manifest = freeze(store, [wafer(n) for n in range(9)])
    key = f"datasets/{manifest.dataset_id}"
    content = store.get(f"{key}/wafers.parquet")
    for damaged in (content[:-1], content[:40] + bytes([content[40] ^ 1]) + content[41:], b""):
        store.put(f"{key}/wafers.parquet", damaged)
        with pytest.raises(DataLossError, match="SHA-256"):
            open_dataset(store, manifest.dataset_id)
    store.delete(f"{key}/wafers.parquet")
    with pytest.raises(DataLossError, match=r"no wafers\.parquet"):
        open_dataset(store, manifest.dataset_id)
    text = store.get(f"{key}/manifest.json")
    for broken in (
        text[:50],
        b"{}",
        b"[]",
        b"\xff",
        json.dumps({**json.loads(text), "format_version": 99}).encode(),
        json.dumps({**json.loads(text), "counts": {"c1": {"sideways": 1}}}).encode(),
    ):
        store.put(f"{key}/manifest.json", broken)
        with pytest.raises(DataLossError):
            open_dataset(store, manifest.dataset_id)


@pytest.mark.parametrize(
    ("wafers", "field"),
    [
        ([wafer(1), wafer(1)], "wafer_id"),
        ([wafer(1, wafer_id="")], "wafer_id"),
        ([wafer(1, class_id="c9")], "class_id"),
        ([wafer(1, also=("c9",))], "also"),
        ([wafer(1, also=("c1",))], "also"),
        ([wafer(1, also=("c2", "c2"))], "also"),
        ([wafer(1, also=("c3",))], "also"),
        ([wafer(1, class_id="c3", also=("c1",))], "also"),
        ([wafer(1, lot="L"), wafer(2, Split.TEST, lot="L")], "split"),
        ([wafer(1, Split.TUNE, origin=Origin.LEARNED)], "split"),
        ([wafer(1, Split.TEST), wafer(2, lot="", origin=Origin.VARIATION, parent_id="w1")], "split"),
        ([wafer(2, lot="", origin=Origin.VARIATION, parent_id="w1"), wafer(1, Split.TEST)], "split"),
        ([wafer(1, dies=np.zeros((3, 3), np.uint8))], "dies"),
        ([wafer(1, dies=np.full((3, 3), 3, np.uint8))], "dies"),
        ([], "wafers"),
    ],
)
def test_rules_of_a_data_set(tmp_path: Path, wafers: list[DatasetWafer], field: str) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(InvalidArgumentError) as caught:
        freeze(store, wafers)
    assert caught.value.field == field
    assert store.list() == []


def generated(number: int = 0, count: int = 3, **values: object) -> GeneratedWafers:
    dies = np.random.default_rng(number).integers(1, 3, 12 * count).astype(np.uint8)
    fields = {
        "series": "v-",
        "first": number,
        "grids": GridSequence(dies, np.array([(3, 4), (2, 6)] * count)[:count]),
        "class_id": "c1",
        "origin": Origin.VARIATION,
        "parents": np.arange(count) % 2,
        "parent_ids": ["w1", "w2"],
        "lots": ["lot-train", ""],
        **values,
    }
    return GeneratedWafers(**fields)  # type: ignore[arg-type]


def test_generated_wafers_are_written_by_the_column(store: BlobStore) -> None:
    with DatasetWriter(store, new_dataset_id(), CLASSES) as writer:
        writer.add([wafer(1), wafer(2, lot="")])
        writer.add_generated(generated(0))
        writer.add_generated(generated(9, 1500))
        writer.add([wafer(3, wafer_id="v-08"), wafer(4, wafer_id="v-")])
        manifest = writer.finish()
    assert (manifest.wafers, manifest.lots) == (1507, 1)
    assert manifest.counts["c1"] == {Split.TRAIN: 1507, Split.TUNE: 0, Split.TEST: 0}
    assert manifest.origins == {Origin.UPLOADED: 4, Origin.VARIATION: 1503}
    expected = [
        DatasetWafer(f"v-{first + index}", grid, "c1", lot, Origin.VARIATION, parent)
        for first, count in ((0, 3), (9, 1500))
        for index, grid in enumerate(generated(first, count).grids)
        for lot, parent in [("lot-train", "w1") if index % 2 == 0 else ("", "w2")]
    ]
    dataset = open_dataset(store, manifest.dataset_id)
    check_equal(
        dataset,
        [wafer(1), wafer(2, lot=""), *expected, wafer(3, wafer_id="v-08"), wafer(4, wafer_id="v-")],
    )


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ([generated(series="v1")], "series"),
        ([generated(series="")], "series"),
        ([generated(), generated(2)], "first"),
        ([wafer(1, wafer_id="v-2"), generated()], "series"),
        ([generated(), wafer(1, wafer_id="v-2")], "wafer_id"),
        ([generated(class_id="c9")], "class_id"),
        ([generated(origin=Origin.UPLOADED)], "origin"),
        ([generated(parents=np.array([0, 1, 2]))], "parents"),
        ([generated(parents=np.array([0, 1]))], "parents"),
        ([wafer(1, Split.TEST, lot="lot-train"), generated()], "split"),
        ([wafer(1, Split.TEST, lot=""), generated()], "split"),
        ([generated(), wafer(1, Split.TEST, lot="")], "split"),
        ([generated(grids=GridSequence(np.zeros(12, np.uint8), np.array([(2, 2)] * 3)))], "dies"),
        ([generated(grids=GridSequence(np.full(12, 3, np.uint8), np.array([(2, 2)] * 3)))], "dies"),
    ],
)
def test_rules_of_generated_wafers(tmp_path: Path, given: list[DatasetWafer | GeneratedWafers], field: str) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(InvalidArgumentError) as caught:
        write(store, given)
    assert caught.value.field == field
    assert store.list() == []


def write(store: BlobStore, given: list[DatasetWafer | GeneratedWafers]) -> None:
    with DatasetWriter(store, "made", CLASSES) as writer:
        for each in given:
            writer.add([each]) if isinstance(each, DatasetWafer) else writer.add_generated(each)
        writer.finish()


@pytest.mark.parametrize("dataset_id", ["", "../x", "a/b", "A", "a" * 64, "-a", "a.b"])
def test_identifiers_are_checked(tmp_path: Path, dataset_id: str) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(InvalidArgumentError):
        DatasetWriter(store, dataset_id, CLASSES)
    with pytest.raises(InvalidArgumentError):
        open_dataset(store, dataset_id)
    with pytest.raises(InvalidArgumentError):
        DatasetWriter(store, "a", [CLASSES[0], CLASSES[0]])


def test_identifiers_differ() -> None:
    assert len({new_dataset_id() for _ in range(1000)}) == 1000


def test_a_writer_killed_in_the_middle_leaves_nothing_visible(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin
        from services.common.store import open_store

        def wafers():
            for number in range(10_000_000):
                if number == 3000:
                    print("writing", flush=True)
                yield DatasetWafer(f"w{number}", np.ones((20, 20), np.uint8), "c", "lot", Origin.UPLOADED)

        with DatasetWriter(open_store(sys.argv[1]), "killed", [DatasetClass("c", "c")]) as writer:
            writer.add(wafers())
            writer.finish()
        """
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    store = open_store(str(tmp_path / "store"))
    assert store.list() == []
    freeze(store, [wafer(1)], "killed")
    assert open_dataset(store, "killed").manifest.wafers == 1


@pytest.mark.data
def test_real_wafers_frozen_by_lot(data_folder: Path, tmp_path: Path) -> None:
    wafers = read_wafer_set(data_folder / "wafers_small.npz")
    assert wafers.labels is not None
    assert wafers.groups is not None
    sides = split_by_lot(wafers.labels, wafers.groups)
    classes = [DatasetClass(name, name, name) for name in sorted(set(wafers.labels))]
    store = open_store(str(tmp_path / "store"))
    with DatasetWriter(store, new_dataset_id(), classes) as writer:
        writer.add(
            DatasetWafer(f"w{n}", grid, label, lot, Origin.UPLOADED, split=Split(side))
            for n, (grid, label, lot, side) in enumerate(
                zip(wafers.grids, wafers.labels, wafers.groups, sides.tolist(), strict=True)
            )
        )
        manifest = writer.finish()
    dataset = open_dataset(store, manifest.dataset_id)
    for split in Split:
        for other in set(Split) - {split}:
            assert not set(dataset.lots(split)) & set(dataset.lots(other))
    assert all(np.array_equal(got, grid) for got, grid in zip(dataset.grids(), wafers.grids, strict=True))
