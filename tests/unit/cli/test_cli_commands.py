"""Options, messages and exit codes of the commands."""

import inspect
import json

import numpy as np
import pytest
import typer

from gateway.cli import app as cli
from gateway.cli.generated import picture
from gateway.cli.generating import parse_status, requests
from gateway.cli.options import Reach, parse_model
from gateway.cli.training import model_id_of
from gateway.cli.wafers import TaughtWafers
from gateway.supervisor import home_locked, serving_addresses
from gateway.values import Method, VariationOptions
from services.common import errors
from services.common.errors import FailedPreconditionError, InvalidArgumentError
from services.common.formats import read_wafers
from services.common.model_repository import ModelRepository
from tests.helpers.command_line import CommandLine
from tests.helpers.tiny_model import publish_tiny_model


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "300")
    return CommandLine(monkeypatch, capsys)


def taught(**counts):
    made = TaughtWafers()
    for name, count in counts.items():
        for _ in range(count):
            made.add(np.ones((3, 3), np.uint8), name, "")
    return made


def test_help_names_every_fixed_command_and_the_exit_codes(call):
    code, out, _ = call("--help")
    assert code == 0
    for name in ("serve", "import", "generate", "train", "evaluate", "predict", "export", "models", "demo"):
        assert name in out
    assert "Exit codes" in out


def test_the_seed_options_have_both_spellings(call):
    _, out, _ = call("train", "--help")
    for name in ("--training_dir", "--training-dir", "--batch_size", "--batch-size", "--learning_rate", "--epochs"):
        assert name in out
    _, out, _ = call("generate", "--help")
    for name in ("--generating_dir", "--generating-dir", "--status"):
        assert name in out


def test_every_error_has_an_exit_code_other_than_success():
    classes = [
        each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.TeachwaferError)
    ]
    assert all(cli.exit_code(each("x")) > 0 for each in classes)
    assert cli.exit_code(InvalidArgumentError("x")) == 2
    assert cli.exit_code(errors.NotFoundError("model", "x")) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train",), 2, "Expected one folder or wafer set"),
        (("train", "--training_dir", "/does/not/exist"), 3, "/does/not/exist"),
        (("train", "--training_dir", "/does/not/exist", "--publish", "../x"), 2, "--publish|Expected letters"),
        (("train", "--training_dir", ".", "--epochs", "0"), 2, "--epochs"),
        (("predict", "--model", "x:latest", "."), 2, "NAME or NAME:VERSION"),
        (("evaluate", "--model", "x", "--wafers", "/does/not/exist"), 3, "/does/not/exist"),
        (("export", "--model", "absent", "--out", "."), 3, "Expected a published model"),
        (("models", "show", "absent"), 3, "Expected a published model"),
        (("models", "load", "x", "--predictor-address", "127.0.0.1:1"), 4, "teachwafer serve"),
        (("import", "--project", "p", "/does/not/exist"), 3, "/does/not/exist"),
        (("generate", "--generating_dir", "/does/not/exist", "--status", "{}"), 2, "--status as JSON"),
    ],
)
def test_mistakes_end_in_one_clear_line_and_no_trace(call, arguments, code, words):
    ended, out, err = call(*arguments)
    assert ended == code, err
    assert any(word in err for word in words.split("|")), err
    assert "Traceback" not in err
    assert out == ""


def test_wrong_settings_name_the_variable(call, monkeypatch):
    monkeypatch.setenv("TEACHWAFER_GATEWAY_PORT", "many")
    code, _, err = call("models", "list")
    assert code == 2
    assert "TEACHWAFER_GATEWAY_PORT" in err


def test_status_is_checked():
    parsed = parse_status('[{"name":"class1","ai_use":true},{"name":"class2","ai_use":false,"count":7}]')
    assert [(each.name, each.ai_use, each.count) for each in parsed] == [("class1", True, None), ("class2", False, 7)]
    for wrong in ("[", '{"name":"x"}', '[{"name":"x"}]', '[{"name":"x","ai_use":true,"other":1}]', '[{"ai_use":true}]'):
        with pytest.raises(InvalidArgumentError, match="Expected --status as JSON"):
            parse_status(wrong)


def test_settings_of_variations_come_from_the_class_before_the_options():
    status = '[{"name":"a","ai_use":false,"handedness":true,"shear":0},{"name":"b","ai_use":false}]'
    one, other = requests(parse_status(status), taught(a=3, b=2), 5, VariationOptions(shear=0.1, strength=0.3))
    assert one.variations == VariationOptions(shear=0, strength=0.3, handedness=True)
    assert other.variations == VariationOptions(shear=0.1, strength=0.3)
    for wrong in ('"ai_use":true,"shear":0', '"ai_use":false,"strength":0.6', '"ai_use":false,"strength":NaN'):
        with pytest.raises(InvalidArgumentError):
            parse_status(f'[{{"name":"a",{wrong}}}]')


def test_status_becomes_requests():
    wanted = parse_status('[{"name":"a","ai_use":true},{"name":"b","ai_use":false,"count":7}]')
    made = requests(wanted, taught(a=3, b=2, c=1), 50)
    assert [(each.class_id, each.count, each.method) for each in made] == [
        ("a", 50, Method.LEARNED),
        ("b", 7, Method.VARIATIONS),
    ]
    assert [each.class_id for each in requests([], taught(a=1, b=1), 5)] == ["a", "b"]
    for wrong in ('[{"name":"d","ai_use":true}]', '[{"name":"a","ai_use":true},{"name":"a","ai_use":false}]'):
        with pytest.raises(InvalidArgumentError, match="with wafers for it"):
            requests(parse_status(wrong), taught(a=3, b=2), 5)


def test_pictures_of_generated_wafers_are_read_back_exactly():
    grid = np.random.default_rng(0).integers(1, 3, (17, 23)).astype(np.uint8)
    rows, columns = np.ogrid[-1:1:17j, -1:1:23j]
    grid[rows**2 + columns**2 > 1.05] = 0
    report = read_wafers("wafer.png", picture(grid))
    assert np.array_equal(report.wafers[0].map.dies, grid), report.skipped


def test_models_are_named_with_or_without_version():
    assert parse_model("wafers") == ("wafers", 0)
    assert parse_model("wafers:3") == ("wafers", 3)
    for wrong in ("", ":3", "wafers:", "wafers:0", "wafers:x"):
        with pytest.raises(typer.BadParameter):
            parse_model(wrong)


def test_the_default_model_name_is_made_of_the_folder(tmp_path):
    assert model_id_of(tmp_path / "my wafers (2)") == "my-wafers-2"
    assert model_id_of(tmp_path / "wafers_dev.npz") == "wafers_dev"
    assert model_id_of(tmp_path / "웨이퍼") == "wafers"


def test_addresses_come_from_options_then_environment_then_a_running_serve(home, monkeypatch):
    assert Reach.to(None, False, trainer="t:1").settings().trainer_address == "t:1"
    monkeypatch.setenv("TEACHWAFER_TRAINER_ADDRESS", "e:2")
    assert Reach().settings().trainer_address == "e:2"
    assert "trainer_address" in Reach().settings().model_fields_set


def test_one_serve_a_home_and_its_addresses_are_found_while_it_runs(home):
    assert serving_addresses(home) == {}
    with home_locked(home) as note:
        assert serving_addresses(home) == {}
        note({"trainer_address": "127.0.0.1:5"})
        assert serving_addresses(home) == {"trainer_address": "127.0.0.1:5"}
        with pytest.raises(FailedPreconditionError, match=r"runs on .* already"), home_locked(home):
            pass
    assert serving_addresses(home) == {}


def test_models_are_listed_shown_and_exported(call, home, tmp_path):
    assert "No model" in call("models", "list")[1]
    repository = ModelRepository(home / "models")
    publish_tiny_model(repository, "tiny", tmp_path)
    code, out, _ = call("models", "list", "--json")
    assert code == 0
    (entry,) = json.loads(out)["models"]
    assert (entry["model"], entry["version"], entry["state"]) == ("tiny", 1, "model server not running")

    _, out, _ = call("models", "show", "tiny", "--json")
    assert json.loads(out)["model_id"] == "tiny"

    code, out, _ = call("export", "--model", "tiny", "--out", tmp_path / "out", "--json")
    assert code == 0
    exported = tmp_path / "out" / "tiny-1.onnx"
    assert str(exported) in json.loads(out)["files"]
    assert exported.read_bytes() == (home / "models" / "tiny" / "1" / "model.onnx").read_bytes()
    assert call("export", "--model", "tiny", "--out", tmp_path / "out")[0] == 4
    assert call("export", "--model", "tiny:2", "--out", tmp_path / "other")[0] == 3
    assert call("export", "--model", "tiny", "--format", "keras", "--out", tmp_path / "k")[0] == 3


def test_a_damaged_model_is_not_exported(call, home, tmp_path):
    publish_tiny_model(ModelRepository(home / "models"), "tiny", tmp_path)
    file = home / "models" / "tiny" / "1" / "model.onnx"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes() + b"x")
    code, _, err = call("export", "--model", "tiny", "--out", tmp_path / "out")
    assert code == 7
    assert "SHA-256" in err
    assert not (tmp_path / "out").exists()


def test_evaluate_knows_its_protocols_and_passes_their_failure_on(call, tmp_path):
    code, _, err = call("evaluate", "--protocol", "many-shot", "--wafers", tmp_path / "none.npz")
    assert code != 0
    assert "few-shot" in err
    code, _, _ = call("evaluate", "--protocol", "few-shot", "--wafers", tmp_path / "none.npz")
    assert code == 1
    code, _, _ = call("evaluate", "--protocol", "few-shot", "--wafers", tmp_path / "none.npz", "--", "--draws", "none")
    assert code == 2  # the trainer's program refuses the option that was passed on
    code, _, err = call("evaluate", "--model", "tiny", "--wafers", tmp_path / "none.npz", "--", "--draws", "2")
    assert code != 0
    assert "--protocol" in err
