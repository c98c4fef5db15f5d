"""The same code through Keras gives the same bits, also in a graph that knows no dimension."""

import warnings

import numpy as np
import pytest

from services.common.preprocessing import pad_grids, planes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")


def _batch() -> np.ndarray:
    random = np.random.default_rng(3)
    shapes = [(8, 8), (27, 15), (52, 52), (150, 107), (200, 31)]
    return pad_grids([random.integers(0, 3, shape).astype(np.uint8) for shape in shapes] + [np.zeros((4, 4), np.uint8)])


@pytest.mark.parametrize("size", [16, 48, 96])
def test_eager_is_equal(size: int) -> None:
    batch = _batch()
    assert np.array_equal(keras.ops.convert_to_numpy(planes(batch, size, xp=keras.ops)), planes(batch, size))


def test_graph_without_known_dimensions_is_equal_and_traced_once() -> None:
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, None], tf.uint8)])
    def graph(dies):
        traces.append(dies.shape)
        return planes(dies, 48, xp=keras.ops)

    batch = _batch()
    for part in (batch, batch[:1], batch[1:3, :60, :60]):
        assert np.array_equal(graph(tf.constant(part)).numpy(), planes(part, 48))
    assert len(traces) == 1
