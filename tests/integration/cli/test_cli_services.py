"""Commands against real services, started for the command or running already."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter

import numpy as np
import psutil
import pytest

from gateway.cli.wafers import read_taught
from gateway.settings import GatewaySettings
from gateway.supervisor import Supervisor, serving_addresses
from services.common.errors import UnavailableError
from services.common.model_repository import ModelRepository
from services.common.settings import load_settings
from services.common.wafer_set import read_wafer_set, write_wafer_set
from tests.helpers.command_line import CommandLine
from tests.helpers.eventually import assert_eventually, assert_eventually_sync
from tests.helpers.tiny_model import CLASSES, publish_tiny_model, tiny_wafers

START_S = 120
CLASS_WAFERS = 12


def start_serve(home):
    """Starts `teachwafer serve` and waits until it is ready; returns the process and what it said."""
    log = home / "serve.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gateway.cli",
                "serve",
                "--no-portal",
                "--free-ports",
                "--json",
                "--home",
                str(home),
            ],
            env={**os.environ, "TEACHWAFER_DRAIN_SECONDS": "2"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process.stdout:
        line = process.stdout.readline()
    assert line, log.read_text()
    return process, json.loads(line)


def children_of(pid):
    """Returns the living programs that a supervisor in a process has started."""
    living = [each for each in psutil.Process(pid).children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in living if "gateway.launcher" in each.cmdline()]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Home on which `teachwafer serve` runs, with a published model; stopped in order at the end."""
    home = tmp_path_factory.mktemp("served")
    publish_tiny_model(ModelRepository(home / "models"), "tiny", tmp_path_factory.mktemp("tiny"))
    process, ready = start_serve(home)
    assert ready["ports"].keys() == {"generator", "trainer", "predictor"}
    assert serving_addresses(home)["predictor_address"] == f"127.0.0.1:{ready['ports']['predictor']}"
    children = children_of(process.pid)
    yield home
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    assert not any(each.is_running() for each in children)
    assert serving_addresses(home) == {}


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def class_folders(tmp_path):
    """A folder with two classes, rings and stripes, of wafers in lots of two."""
    random = np.random.default_rng(0)
    for name in ("ring", "stripe"):
        folder = tmp_path / "wafers" / name
        folder.mkdir(parents=True)
        grids = random.choice(np.array([1, 2], np.uint8), (CLASS_WAFERS, 16, 16), p=(0.95, 0.05))
        if name == "ring":
            grids[:, [0, 1, -1, -2]] = 2
        else:
            grids[:, 7:9] = 2
        groups = [f"{name}-{index // 2}" for index in range(CLASS_WAFERS)]
        write_wafer_set(folder / "some.npz", list(grids), groups=groups)
    return tmp_path / "wafers"


@pytest.fixture
def labelled(tmp_path):
    """A wafer set that the tiny model gets right but for one wafer."""
    grids = list(np.concatenate([tiny_wafers(), tiny_wafers()]))
    labels = [each.capitalize() for each in (*CLASSES, *CLASSES)]
    labels[-1] = "Low"
    path = tmp_path / "labelled.npz"
    write_wafer_set(path, grids, labels=labels, groups=[f"lot{index}" for index in range(6)])
    return path


def test_generate_makes_wafers_of_the_seed_command(call, served, class_folders, tmp_path):
    status = '[{"name":"ring","ai_use":false},{"name":"stripe","ai_use":false,"count":3}]'
    arguments = ("generate", "--generating_dir", class_folders, "--status", status, "--count", 5, "--json")
    code, out, err = call(*arguments, "--out", tmp_path / "made", "--home", served)
    assert code == 0, err
    told = json.loads(out)
    assert told["written"] == {"ring": 5, "stripe": 3}
    assert told["classes"]["ring"]["parents"] == CLASS_WAFERS
    made = read_wafer_set(tmp_path / "made" / "ring" / "generated.npz")
    assert (len(made), made.labels) == (5, ["ring"] * 5)
    code, _, err = call(*arguments, "--out", tmp_path / "made", "--home", served)
    assert code == 4
    assert "new or empty folder" in err


def test_generate_tells_whether_the_wafers_help(call, served, class_folders, tmp_path):
    prove = ("--prove", "--count", 5, "--home", served)
    out_of = ("--out", tmp_path / "made")
    code, out, err = call("generate", "--generating_dir", class_folders, *prove, *out_of, "--json")
    assert code == 0, err
    told = json.loads(out)
    proof = told["proof"]
    assert proof["low"] <= proof["difference"] <= proof["high"]
    parents = sum(each["parents"] for each in told["classes"].values())
    # The wafers that judge are no parents.
    assert proof["judged_wafers"] == 2 * CLASS_WAFERS - parents > 0
    assert f"Generation {told['job'].removeprefix('generationJobs/')}" in err
    assert "95 % interval" in err
    assert f"judged by {proof['judged_wafers']} wafers of {proof['judged_lots']} lots set aside" in " ".join(
        err.split()
    )
    # Nothing is cut off, although the console is 80 columns wide.
    assert "recognised" in err
    assert "…" not in err
    # What cannot be proved is refused before anything is made.
    shutil.copytree(class_folders / "ring", tmp_path / "single" / "ring")
    code, _, err = call("generate", "--generating_dir", tmp_path / "single", *prove, "--out", tmp_path / "more")
    assert code == 4
    assert "without --prove" in err
    assert not (tmp_path / "more").exists()
    code, _, err = call("generate", "--simulate", tmp_path / "spec.yaml", "--prove", "--home", served)
    assert code == 2
    assert "--generating_dir" in err


def test_generate_simulates_what_a_file_describes(call, served, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "classes: [{patterns: Loc, count: 7}, {patterns: [Center, Scratch], count: 3, label: both}]\nseed: 2\n"
    )
    code, out, err = call("generate", "--simulate", spec, "--json", "--home", served)
    assert code == 0, err
    assert json.loads(out) == {
        "out": str(tmp_path / "spec.npz"),
        "wafers": 10,
        "classes": {"Loc": 7, "both": 3},
        "seed": 2,
    }
    assert Counter(read_taught(tmp_path / "spec.npz").labels) == {"Loc": 7, "both": 3}
    first = read_wafer_set(tmp_path / "spec.npz")
    code, _, err = call("generate", "--simulate", spec, "--out", tmp_path / "again.npz", "--home", served)
    assert code == 0, err
    again = read_wafer_set(tmp_path / "again.npz")
    assert all(np.array_equal(one, other) for one, other in zip(first.grids, again.grids, strict=True))
    assert first.groups == again.groups

    assert call("generate", "--simulate", spec, "--home", served)[0] == 4
    spec.write_text("classes: [{patterns: Banana, count: 7}]")
    code, _, err = call("generate", "--simulate", spec, "--out", tmp_path / "new.npz", "--home", served)
    assert code == 2
    assert "classes[0].patterns" in err
    code, _, err = call("generate", "--home", served)
    assert code == 2
    assert "--simulate" in err


def test_predict_and_evaluate_use_the_services_that_run(call, served, labelled):
    code, out, err = call("evaluate", "--model", "tiny:1", "--wafers", labelled, "--json", "--home", served)
    assert code == 0, err
    assert "Starting" not in err
    told = json.loads(out)
    assert (told["wafers"], told["accuracy"]) == (6, pytest.approx(5 / 6))
    assert told["per_class"]["Low"]["recall"] == pytest.approx(2 / 3)
    assert told["per_class"]["High"]["precision"] == pytest.approx(1 / 2)

    code, out, err = call("predict", "--model", "other", labelled, "--home", served)
    assert (code, out) == (3, "")
    assert "other" in err


def test_models_are_unloaded_and_loaded(call, served, labelled):
    _, out, _ = call("models", "unload", "tiny", "--json", "--home", served)
    assert json.loads(out)["states"] == {"1": "unloaded"}
    code, out, _ = call("models", "list", "--json", "--home", served)
    assert [(each["model"], each["state"]) for each in json.loads(out)["models"] if each["model"] == "tiny"] == [
        ("tiny", "unloaded")
    ]
    code, out, err = call("models", "load", "tiny", "--json", "--home", served)
    assert code == 0, err
    assert json.loads(out)["states"] == {"1": "ready"}


def test_a_second_serve_on_the_home_is_refused(call, served):
    code, _, err = call("serve", "--no-portal", "--free-ports", "--home", served)
    assert code == 4
    assert "runs on" in err


def test_train_teaches_and_publishes_and_the_model_can_be_asked(call, served, class_folders, tmp_path):
    arguments = ("--training_dir", class_folders, "--epochs", 2, "--batch_size", 8, "--learning_rate", 0.001)
    code, out, err = call("train", *arguments, "--publish", "rings", "--json", "--home", served)
    assert code == 0, err
    told = json.loads(out)
    assert (told["model"], told["version"]) == ("rings", 1)
    assert told["test"]["wafers"] > 0
    assert told["peak_memory_bytes"] > 0
    assert told["parity_max_difference"] < 1e-4
    assert "epoch   1/2" in err
    code, out, err = call("predict", "--model", "rings", class_folders, "--json", "--home", served)
    assert code == 0, err
    assert {each["class"] for each in json.loads(out)["answers"]} <= {"ring", "stripe"}
    for file_format in ("onnx", "keras"):
        target = tmp_path / "out" / file_format
        code, _, err = call("export", "--model", "rings", "--format", file_format, "--out", target, "--home", served)
        assert code == 0, err
        assert (target / f"rings-1.{file_format}").stat().st_size > 10_000


def test_predict_starts_a_model_server_where_none_runs(call, home, labelled, tmp_path):
    publish_tiny_model(ModelRepository(home / "models"), "tiny", tmp_path)
    code, out, err = call("predict", "--model", "tiny", labelled, "--json")
    assert code == 0, err
    assert "Starting predictor" in err
    told = json.loads(out)
    assert (told["model"], told["version"]) == ("tiny", 1)
    assert [each["class_id"] for each in told["answers"]] == [*CLASSES, *CLASSES]
    assert not children_of(os.getpid())


def test_an_interrupted_train_cancels_its_job_and_stops_its_services(home, class_folders):
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "train", str(class_folders), "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process.stdout:
        for line in process.stdout:
            if line.startswith("Training "):
                break
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.wait(90) == 130, rest
    assert "Cancelling Training" in rest
    assert "Traceback" not in rest
    assert children
    assert not any(each.is_running() for each in children)
    with contextlib.closing(sqlite3.connect(home / "teachwafer.db")) as database:
        assert database.execute("SELECT state FROM jobs").fetchall() == [("CANCELLED",)]


def test_import_fills_a_project_and_repeats_nothing(call, home, class_folders):
    for expected in ({"ring": CLASS_WAFERS, "stripe": CLASS_WAFERS}, {}):
        code, out, err = call("import", "--project", "Mine", class_folders, "--json")
        assert code == 0, err
        told = json.loads(out)
        assert told["project"] == "Mine"
        assert told["added"] == expected
        assert told["left_out"] == 2 * CLASS_WAFERS - sum(expected.values())


async def test_a_crashed_service_comes_back_on_its_port_and_stop_ends_all(home):
    sentences = []
    settings = load_settings(GatewaySettings, drain_seconds=2)
    supervisor = Supervisor(
        settings, ["predictor"], free_ports=True, tell=lambda _, sentence: sentences.append(sentence)
    )
    await supervisor.start()
    watching = asyncio.create_task(supervisor.watch())
    try:
        (first,) = children_of(os.getpid())
        first.kill()
        again = f"serves on port {supervisor.ports['predictor']}"
        await assert_eventually(lambda: sentences.count(again) == 2, timeout_s=START_S)
        assert any("SIGKILL" in each and "starts again" in each for each in sentences)
        (second,) = children_of(os.getpid())
        assert second.pid != first.pid
    finally:
        await supervisor.stop()
        await watching
    assert not second.is_running()


async def test_a_service_that_cannot_start_says_why(home, monkeypatch):
    monkeypatch.setenv("TEACHWAFER_PREDICTOR_MAX_WAITING_WAFERS", "-1")
    supervisor = Supervisor(load_settings(GatewaySettings), ["predictor"], free_ports=True)
    with pytest.raises(UnavailableError, match="TEACHWAFER_PREDICTOR_MAX_WAITING_WAFERS"):
        await supervisor.start()


def test_services_end_with_a_killed_serve(home):
    process, _ = start_serve(home)
    children = children_of(process.pid)
    process.kill()
    process.wait()
    assert_eventually_sync(lambda: not any(each.is_running() for each in children), timeout_s=60)
    assert serving_addresses(home) == {}
