"""The model repository: versions that are whole, unchanging and counted once, with several publishers and kill -9."""

import json
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import model_config_pb2

from services.common.errors import DataLossError, InvalidArgumentError, NotFoundError
from services.common.model_manifest import ModelClass, ModelManifest
from services.common.model_repository import ModelRepository, checked_model_id, config_pbtxt
from services.common.task import Task
from tests.contract.data.publishing import publish_often
from tests.unit.data.strategies import texts

MANIFEST = ModelManifest(
    classes=(ModelClass("c1", "Donut"), ModelClass("c2", "스크래치")),
    size=48,
    temperature=1.25,
    accept_threshold=0.9,
    novelty_threshold=3.5,
    dataset_version="datasetVersions/d1",
    backbone="wafernet-small",
    scores={"macro_f1": 0.9, "per_class": {"c1": [1, None]}},
    created_at=datetime(2026, 5, 1, tzinfo=UTC),
)
CONFIG = config_pbtxt("wafers", classes=2, embedding=128, heat_rows=6, heat_columns=6)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    source = tmp_path / "source"
    source.mkdir()
    for name, content in (("model.onnx", b"graph" * 1000), ("golden.npz", b"golden")):
        (source / name).write_bytes(content)
    return {path.name: path for path in source.iterdir()}


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


def test_published_and_read(repository: ModelRepository, files: dict[str, Path]) -> None:
    assert repository.models() == []
    assert repository.versions("wafers") == []
    assert repository.publish("wafers", files, MANIFEST, CONFIG) == 1
    assert repository.publish("wafers", files, replace(MANIFEST, temperature=2.0), CONFIG + "# 2\n") == 2
    assert repository.publish("other", files, MANIFEST, CONFIG) == 1
    assert repository.models() == ["other", "wafers"]
    assert repository.versions("wafers") == [1, 2]
    manifest = repository.manifest("wafers", 1)
    assert manifest == replace(MANIFEST, model_id="wafers", version=1, files=manifest.files)
    assert set(manifest.files) == set(files)
    folder = repository.folder("wafers", 2)
    assert folder == repository.root / "wafers" / "2"
    assert sorted(path.name for path in folder.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert (folder / "model.onnx").read_bytes() == files["model.onnx"].read_bytes()
    assert (folder.parent / "config.pbtxt").read_text() == CONFIG + "# 2\n"


def test_a_request_publishes_once(repository: ModelRepository, files: dict[str, Path]) -> None:
    assert repository.publish("wafers", files, MANIFEST, CONFIG, request_id="r1") == 1
    assert repository.publish("wafers", files, MANIFEST, CONFIG, request_id="r2") == 2
    assert repository.publish("wafers", files, MANIFEST, CONFIG, request_id="r1") == 1
    assert repository.publish("other", files, MANIFEST, CONFIG, request_id="r1") == 1
    assert repository.versions("wafers") == [1, 2]
    repository.delete("wafers", 2)
    assert repository.publish("wafers", files, MANIFEST, CONFIG, request_id="r2") == 3


def test_numbers_are_never_used_again(repository: ModelRepository, files: dict[str, Path]) -> None:
    for _ in range(3):
        repository.publish("wafers", files, MANIFEST, CONFIG)
    repository.delete("wafers", 3)
    repository.delete("wafers", 1)
    assert repository.versions("wafers") == [2]
    assert repository.publish("wafers", files, MANIFEST, CONFIG) == 4
    with pytest.raises(NotFoundError):
        repository.delete("wafers", 3)


def test_foreign_entries_are_no_versions(repository: ModelRepository, files: dict[str, Path]) -> None:
    repository.publish("wafers", files, MANIFEST, CONFIG)
    for name in ("2", "03", "x", ".publishing-dead", "-4"):
        (repository.root / "wafers" / name).mkdir()
    (repository.root / ".hidden" / "1").mkdir(parents=True)
    (repository.root / "empty").mkdir()
    assert repository.versions("wafers") == [1]
    assert repository.models() == ["wafers"]
    for version in (0, -1, 2, 99):
        with pytest.raises(NotFoundError) as caught:
            repository.manifest("wafers", version)
        assert caught.value.name == f"models/wafers/versions/{version}"


def test_damage_is_told(repository: ModelRepository, files: dict[str, Path]) -> None:
    repository.publish("wafers", files, MANIFEST, CONFIG)
    folder = repository.folder("wafers", 1)
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-1])
    with pytest.raises(DataLossError, match=r"model\.onnx") as caught:
        repository.folder("wafers", 1)
    assert caught.value.metadata["file"] == "model.onnx"
    (folder / "model.onnx").unlink()
    with pytest.raises(DataLossError, match="no file"):
        repository.verify("wafers", 1)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"version": 1', '"version": 7'))
    with pytest.raises(DataLossError, match="version 7"):
        repository.manifest("wafers", 1)
    outside = json.loads(text)
    outside["files"] = {"../../../etc/passwd": "0"}
    (folder / "manifest.json").write_text(json.dumps(outside))
    with pytest.raises((DataLossError, InvalidArgumentError)):
        repository.verify("wafers", 1)


@pytest.mark.parametrize(
    "model_id", ["", ".", "..", "../x", "a/b", "/a", "a\\b", ".hidden", "-a", "a" * 64, "a b", "ä", "a\n"]
)
def test_names_that_lead_out_are_refused(repository: ModelRepository, files: dict[str, Path], model_id: str) -> None:
    for ask in (repository.versions, lambda name: repository.manifest(name, 1), checked_model_id):
        with pytest.raises(InvalidArgumentError):
            ask(model_id)
    with pytest.raises(InvalidArgumentError):
        repository.publish(model_id, files, MANIFEST, CONFIG)
    assert not repository.root.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "manifest.json"])
def test_file_names_are_checked(repository: ModelRepository, files: dict[str, Path], name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        repository.publish("wafers", {name: files["model.onnx"]}, MANIFEST, CONFIG)
    assert repository.models() == []


def test_missing_files_publish_nothing(repository: ModelRepository, files: dict[str, Path], tmp_path: Path) -> None:
    for wrong in ({}, {"model.onnx": tmp_path / "none"}, {"model.onnx": tmp_path}):
        with pytest.raises(InvalidArgumentError):
            repository.publish("wafers", wrong, MANIFEST, CONFIG)
    with pytest.raises(InvalidArgumentError, match="finite"):
        repository.publish("wafers", files, replace(MANIFEST, scores={"f1": float("nan")}), CONFIG)
    assert repository.models() == []


def test_publishers_in_several_processes_get_different_numbers(
    repository: ModelRepository, files: dict[str, Path]
) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (str(repository.root), str(files["model.onnx"]), MANIFEST.to_json(), 5, results)
    processes = [context.Process(target=publish_often, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    numbers = sorted(results.get(timeout=60) for _ in range(15))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    results.close()
    results.join_thread()
    assert numbers == list(range(1, 16)) == repository.versions("wafers")
    for number in numbers:
        repository.verify("wafers", number)
    assert not list((repository.root / "wafers").glob(".publishing-*"))


_KILLED_AT = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import services.common.model_repository as module
    from services.common.model_manifest import ModelManifest

    calls = 0
    real = os.fsync

    def fsync(descriptor):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    manifest = ModelManifest.from_json(sys.argv[4])
    module.ModelRepository(Path(sys.argv[1])).publish(
        "wafers", {"model.onnx": Path(sys.argv[2])}, manifest, "config", request_id="retried"
    )
    """
)


def test_a_publisher_killed_at_any_step_leaves_no_half_version(
    repository: ModelRepository, files: dict[str, Path]
) -> None:
    repository.publish("wafers", files, MANIFEST, CONFIG)
    step, known, killed = 1, {1}, 0
    while True:
        ended = subprocess.run(
            [
                sys.executable,
                "-c",
                _KILLED_AT,
                str(repository.root),
                str(files["model.onnx"]),
                str(step),
                MANIFEST.to_json(),
            ],
            check=False,
            capture_output=True,
        )
        for version in repository.versions("wafers"):
            repository.verify("wafers", version)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        killed += 1
        step += 2
        assert len(repository.versions("wafers")) <= 2
    assert killed >= 3
    versions = set(repository.versions("wafers"))
    assert len(versions - known) == 1, "the retried request published once"
    number = repository.publish("wafers", files, MANIFEST, CONFIG)
    assert number > max(versions)
    assert not list((repository.root / "wafers").glob(".publishing-*"))


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        ModelManifest,
        classes=st.lists(
            st.builds(ModelClass, texts.filter(bool), texts, st.booleans()), min_size=1, unique_by=lambda c: c.class_id
        ).map(tuple),
        size=st.integers(1, 512),
        temperature=st.floats(0.01, 100),
        accept_threshold=st.floats(0, 1),
        novelty_threshold=st.floats(0, 1e6),
        dataset_version=texts,
        backbone=texts,
        task=st.sampled_from(list(Task)),
        quantised=st.booleans(),
        scores=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False) | st.none() | texts),
        created_at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    )
)
def test_manifests_round_trip(manifest: ModelManifest) -> None:
    assert ModelManifest.from_json(manifest.to_json()) == manifest


def test_manifest_leaves_unknown_fields_out_and_names_missing_ones() -> None:
    data = json.loads(MANIFEST.to_json())
    assert ModelManifest.from_json(json.dumps({**data, "from_the_future": 1})) == MANIFEST
    # Releases that quantised nothing did not say so.
    assert not ModelManifest.from_json(json.dumps({k: v for k, v in data.items() if k != "quantised"})).quantised
    for name in set(data) - {"format_version", "quantised"}:
        with pytest.raises(DataLossError, match=name):
            ModelManifest.from_json(json.dumps({key: value for key, value in data.items() if key != name}))
    for text in ("", "[]", "null", '{"format_version": 2}', json.dumps({**data, "temperature": -1})):
        with pytest.raises(DataLossError):
            ModelManifest.from_json(text)


def test_manifest_of_a_release_that_knew_no_normal_class_is_read() -> None:
    data = json.loads(MANIFEST.to_json())
    for each in data["classes"]:
        del each["normal"]
    old = ModelManifest.from_json(json.dumps(data))
    assert old == MANIFEST
    assert (old.task, [each.normal for each in old.classes]) == (Task.SINGLE, [False, False])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"classes": ()}, "classes"),
        ({"classes": (ModelClass("a", "x"), ModelClass("a", "y"))}, "classes"),
        ({"size": 0}, "size"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"accept_threshold": 1.5}, "accept_threshold"),
        ({"task": "other"}, "task"),
        ({"created_at": datetime(2026, 1, 1)}, "created_at"),
    ],
)
def test_manifest_refuses(values: dict, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        replace(MANIFEST, **values)
    assert caught.value.field == field


def test_config_names_inputs_and_outputs() -> None:
    config = text_format.Parse(CONFIG, model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("wafers", "onnxruntime", 1024)
    assert [(each.name, list(each.dims)) for each in config.input] == [("dies", [-1, -1])]
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert {each.name: list(each.dims) for each in config.output} == {
        "probabilities": [2],
        "novelty": [1],
        "embedding": [128],
        "heat": [2, 6, 6],
    }
    assert config.HasField("dynamic_batching")
    with pytest.raises(InvalidArgumentError):
        config_pbtxt("wafers", classes=0, embedding=1, heat_rows=1, heat_columns=1)
    with pytest.raises(InvalidArgumentError):
        config_pbtxt('x" }', classes=1, embedding=1, heat_rows=1, heat_columns=1)
