from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from teachwafer.type import wafer_map_pb2

from services.common.errors import InvalidArgumentError
from services.common.wafer_map import MAX_SIDE, WaferGeometry, WaferIdentity, WaferMap
from services.common.wafer_map_converter import from_proto, to_proto
from tests.unit.data.strategies import wafer_maps

DIES = np.array([[0, 1], [2, 1]], np.uint8)


def test_map_shares_no_memory_and_is_read_only() -> None:
    source = DIES.copy()
    wafer = WaferMap(source, bins=np.ones((2, 2), np.int32))
    source[:] = 0
    assert wafer.dies.tolist() == DIES.tolist()
    with pytest.raises(ValueError, match="read-only"):
        wafer.dies[0, 0] = 1
    assert wafer.bins is not None
    with pytest.raises(ValueError, match="read-only"):
        wafer.bins[0, 0] = 1


def test_map_is_contiguous_whatever_it_is_made_from() -> None:
    wafer = WaferMap(np.asfortranarray(np.ones((3, 5), np.uint8))[:, ::2])
    assert wafer.dies.flags.c_contiguous
    assert (wafer.rows, wafer.columns) == (3, 3)


@pytest.mark.parametrize(
    "dies",
    [
        np.zeros((2, 2), np.uint8),
        np.full((2, 2), 3, np.uint8),
        np.ones((2, 2), np.int64),
        np.ones((2, 2), bool),
        np.ones(4, np.uint8),
        np.ones((0, 4), np.uint8),
        np.ones((1, MAX_SIDE + 1), np.uint8),
        np.array([[None]]),
        [[1]],
    ],
)
def test_map_refuses_what_is_no_grid(dies: object) -> None:
    with pytest.raises(InvalidArgumentError, match="Received") as caught:
        WaferMap(dies)  # type: ignore[arg-type]
    assert caught.value.field == "dies"


@pytest.mark.parametrize("bins", [np.ones((2, 3), np.int32), np.ones((2, 2), np.int64)])
def test_map_refuses_bins_of_another_form(bins: np.ndarray) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        WaferMap(DIES, bins=bins)
    assert caught.value.field == "bins"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"lot": "x" * 257}, "identity.lot"),
        ({"slot": 26}, "identity.slot"),
        ({"slot": -1}, "identity.slot"),
        ({"measure_time": datetime(2026, 1, 1)}, "identity.measure_time"),
    ],
)
def test_identity_refuses(values: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        WaferIdentity(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("pitch", [-1.0, float("nan"), float("inf")])
def test_geometry_refuses(pitch: float) -> None:
    with pytest.raises(InvalidArgumentError):
        WaferGeometry(die_pitch_x_mm=pitch)


def test_address_is_of_shape_and_dies_alone() -> None:
    wafer = WaferMap(DIES, identity=WaferIdentity(lot="A"))
    assert wafer.sha256() == WaferMap(DIES).sha256()
    assert WaferMap(np.ones((2, 3), np.uint8)).sha256() != WaferMap(np.ones((3, 2), np.uint8)).sha256()
    assert WaferMap(DIES).sha256() != WaferMap(DIES.T.copy()).sha256()


@given(wafer_maps())
def test_wire_and_back(wafer: WaferMap) -> None:
    message = wafer_map_pb2.WaferMap.FromString(to_proto(wafer).SerializeToString())
    back = from_proto(message)
    assert (back.dies == wafer.dies).all()
    assert back.identity == wafer.identity
    assert back.geometry == wafer.geometry
    assert (back.bins is None) == (wafer.bins is None)
    if wafer.bins is not None:
        assert (back.bins == wafer.bins).all()


def _message(**values: object) -> wafer_map_pb2.WaferMap:
    return wafer_map_pb2.WaferMap(**{"rows": 2, "columns": 2, "dies": DIES.tobytes(), **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (wafer_map_pb2.WaferMap(), "wafers[3].rows"),
        (_message(rows=-2), "wafers[3].rows"),
        (_message(columns=1025), "wafers[3].columns"),
        (_message(dies=b"\1"), "wafers[3].dies"),
        (_message(dies=b"\0\0\0\0"), "wafers[3].dies"),
        (_message(dies=b"\1\1\1\7"), "wafers[3].dies"),
        (_message(bins=[1]), "wafers[3].bins"),
        (_message(identity={"slot": 99}), "wafers[3].identity.slot"),
        (_message(identity={"measure_time": {"seconds": 1 << 60}}), "wafers[3].identity.measure_time"),
        (_message(geometry={"notch": 77}), "wafers[3].geometry.notch"),
        (_message(geometry={"die_pitch_y_mm": float("nan")}), "wafers[3].geometry.die_pitch_y_mm"),
    ],
)
def test_wire_refuses_and_names_the_field(message: wafer_map_pb2.WaferMap, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        from_proto(message, field="wafers[3]")
    assert caught.value.field == field


def test_unknown_parts_stay_unset() -> None:
    message = to_proto(WaferMap(DIES))
    assert not message.HasField("identity")
    assert not message.HasField("geometry")
    moment = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert to_proto(WaferMap(DIES, identity=WaferIdentity(measure_time=moment))).identity.HasField("measure_time")
