"""The embedding in NumPy is that of the shipped network."""

from pathlib import Path

import numpy as np
import pytest

from services.common.errors import FailedPreconditionError
from services.common.preprocessing import planes_of
from services.generator.embedding import WEIGHTS_NAME, WIDTH, WaferEmbedding
from services.generator.simulator import PATTERNS, SimulatedClass, simulate
from services.trainer.backbones import BACKBONES, BackboneLibrary
from services.trainer.network import embedding_model
from services.trainer.trunks import load_trunk


def test_it_sees_what_keras_sees() -> None:
    classes = [SimulatedClass((name,), 6) for name in PATTERNS]
    grids = [dies for batch in simulate(classes, seed=1) for dies in batch.dies]
    model = embedding_model(load_trunk(BACKBONES["wafer-fast"], BackboneLibrary()), 1)
    embeddings = WaferEmbedding().embed(grids)
    assert embeddings.shape == (len(grids), WIDTH)
    assert np.abs(embeddings - model.predict(planes_of(grids, 48), verbose=0)).max() < 1e-5


def test_missing_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="missing"):
        WaferEmbedding(tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"no")
    (tmp_path / "index.json").write_text(f'{{"{WEIGHTS_NAME}": "0"}}')
    with pytest.raises(FailedPreconditionError, match="damaged"):
        WaferEmbedding(tmp_path)
