"""Fixtures of all tests: an own home, an environment without the developer's settings, real wafers where there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.common.settings import ENVIRONMENT_PREFIX

ROOT = Path(__file__).parents[1]
DATA_VARIABLE = "TEACHWAFER_DATA"

# Several tests run side by side on few cores; set before the first import of TensorFlow or onnxruntime.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("TEACHWAFER_TEST_GPU", ""))


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the developer's TEACHWAFER_* settings away and points the home to a temporary folder."""
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX) and name != DATA_VARIABLE]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TEACHWAFER_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def home() -> Path:
    """Home of this test's services."""
    return Path(os.environ["TEACHWAFER_HOME"])


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with real wafer sets; the test is skipped where there is none."""
    folder = Path(os.environ.get(DATA_VARIABLE, ROOT.parent / "shared" / "data"))
    if not any(folder.glob("wafers_*.npz")):
        pytest.skip(f"needs real wafer maps: set {DATA_VARIABLE} to a folder with wafers_small.npz")
    return folder
