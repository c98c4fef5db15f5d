"""Settings come from the environment and are checked at once; log lines are JSON with the request id."""

import io
import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from services.common import logs
from services.common.errors import InvalidArgumentError
from services.common.settings import ServiceSettings, load_settings


class ExampleSettings(ServiceSettings):
    example_port: int = Field(default=8021, ge=0, le=65535)


def test_everything_embedded_lies_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TEACHWAFER_HOME", str(tmp_path))
    settings = load_settings(ExampleSettings)
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/teachwafer.db"
    assert settings.resolved_store_url == (tmp_path / "store").as_uri()
    assert settings.resolved_model_repository == tmp_path / "models"
    assert settings.host == "127.0.0.1"


def test_the_home_is_absolute_and_settings_cannot_change(monkeypatch, tmp_path):
    monkeypatch.delenv("TEACHWAFER_HOME")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(ExampleSettings)
    assert settings.home == tmp_path / ".teachwafer"
    with pytest.raises(ValidationError):
        settings.host = "0.0.0.0"


def test_the_environment_and_overrides_count(monkeypatch):
    monkeypatch.setenv("TEACHWAFER_EXAMPLE_PORT", "0")
    monkeypatch.setenv("TEACHWAFER_DATABASE_URL", "postgresql://db/teachwafer")
    monkeypatch.setenv("TEACHWAFER_MODEL_REPOSITORY", "/models")
    settings = load_settings(ExampleSettings, drain_seconds=1)
    assert (settings.example_port, settings.drain_seconds) == (0, 1)
    assert settings.resolved_database_url == "postgresql://db/teachwafer"
    assert settings.resolved_model_repository == Path("/models")


def test_a_wrong_value_names_the_variable(monkeypatch):
    monkeypatch.setenv("TEACHWAFER_EXAMPLE_PORT", "70000")
    monkeypatch.setenv("TEACHWAFER_JOB_BACKEND", "slurm")
    with pytest.raises(InvalidArgumentError) as caught:
        load_settings(ExampleSettings)
    assert {each.field for each in caught.value.violations} == {"TEACHWAFER_EXAMPLE_PORT", "TEACHWAFER_JOB_BACKEND"}
    assert "'70000'" in caught.value.message


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def test_json_lines_carry_facts_request_id_and_trace(root_logger):
    stream = io.StringIO()
    logs.configure(load_settings(ExampleSettings), "example", stream)
    token = logs.request_id_var.set("abc")
    try:
        int("hidden")
    except ValueError:
        logging.getLogger("x").warning("it broke", exc_info=sys.exc_info(), extra={"path": Path("/a"), "epoch": 3})
    finally:
        logs.request_id_var.reset(token)
    logging.getLogger("x").debug("not written")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["event"] == "it broke"
    assert (entry["service"], entry["severity"], entry["request_id"]) == ("example", "WARNING", "abc")
    assert (entry["path"], entry["epoch"]) == ("/a", 3)
    assert "ValueError: invalid literal" in entry["trace"]


def test_text_lines_are_short(root_logger):
    stream = io.StringIO()
    logs.configure(load_settings(ExampleSettings, log_format="text"), "example", stream)
    logging.getLogger("x").info("listening", extra={"port": 1})
    assert stream.getvalue().endswith("INFO    example listening port=1\n")


def test_batched_lines_come_a_moment_later_and_warnings_at_once(root_logger):
    stream = io.StringIO()
    logs.configure(load_settings(ExampleSettings, log_format="text"), "example", stream, batched=True)
    logging.getLogger("x").warning("first")
    assert "first" in stream.getvalue()
    token = logs.request_id_var.set("abc")
    logging.getLogger("x").info("second")
    logging.getLogger("x").warning("third")
    logs.request_id_var.reset(token)
    assert [line.split()[3] for line in stream.getvalue().splitlines()] == ["first", "second", "third"]
    logging.getLogger("x").info("fourth")
    end = time.monotonic() + 20
    while "fourth" not in stream.getvalue():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_batched_line_is_lost_or_out_of_order(root_logger):
    stream = io.StringIO()
    logs.configure(load_settings(ExampleSettings, log_format="text"), "example", stream, batched=True)

    def write(thread):
        for number in range(200):
            logging.getLogger("x").log(logging.WARNING if number % 50 == 49 else logging.INFO, "%d %d", thread, number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    lines = [tuple(map(int, line.split()[3:5])) for line in stream.getvalue().splitlines()]
    for thread in range(4):
        assert [number for owner, number in lines if owner == thread] == list(range(200))
