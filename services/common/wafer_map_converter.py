"""Wafer maps from and to the wire. The only module outside converters and servicers that sees `wafer_map_pb2`."""

from datetime import UTC, datetime

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from teachwafer.type import wafer_map_pb2

from services.common.errors import InvalidArgumentError
from services.common.wafer_map import MAX_SIDE, Notch, WaferGeometry, WaferIdentity, WaferMap, check_dies

_NO_IDENTITY, _NO_GEOMETRY = WaferIdentity(), WaferGeometry()


def to_proto(wafer: WaferMap) -> wafer_map_pb2.WaferMap:
    """Return the wire form of a wafer map. Unknown parts stay unset."""
    message = wafer_map_pb2.WaferMap(rows=wafer.rows, columns=wafer.columns, dies=wafer.dies.tobytes())
    if wafer.identity != WaferIdentity():
        message.identity.CopyFrom(_identity_to_proto(wafer.identity))
    if wafer.geometry != WaferGeometry():
        message.geometry.CopyFrom(
            wafer_map_pb2.WaferGeometry(
                notch=wafer_map_pb2.WaferGeometry.Notch.ValueType(wafer.geometry.notch.value),
                die_pitch_x_mm=wafer.geometry.die_pitch_x_mm,
                die_pitch_y_mm=wafer.geometry.die_pitch_y_mm,
            )
        )
    if wafer.bins is not None:
        message.bins.extend(wafer.bins.ravel().tolist())
    return message


def from_proto(message: wafer_map_pb2.WaferMap, field: str = "wafer") -> WaferMap:
    """Return the wafer map that a message holds.

    Args:
        message: what came over the wire; nothing in it is trusted.
        field: path of the message in its request, put in front of the field named in an error, e.g. `wafers[3]`.

    Raises:
        InvalidArgumentError: the message breaks a rule of `wafer_map.proto`.
    """
    rows, columns = _checked_sides(message, field)
    bins = np.array(message.bins, np.int32).reshape(rows, columns) if message.bins else None
    try:
        return WaferMap(
            dies=np.frombuffer(message.dies, np.uint8).reshape(rows, columns),
            identity=_identity_from_proto(message.identity) if message.HasField("identity") else _NO_IDENTITY,
            geometry=_geometry_from_proto(message.geometry) if message.HasField("geometry") else _NO_GEOMETRY,
            bins=bins,
        )
    except InvalidArgumentError as error:
        raise InvalidArgumentError(error.message, field=f"{field}.{error.field}") from error


def dies_from_proto(message: wafer_map_pb2.WaferMap, field: str = "wafer") -> NDArray[np.uint8]:
    """Return the die grid of a message alone, for those who need nothing else of it; all of it is checked.

    Args:
        message: see `from_proto`.
        field: see `from_proto`.

    Returns:
        uint8 (rows, columns), read-only; see `WaferMap.dies`.

    Raises:
        InvalidArgumentError: the message breaks a rule of `wafer_map.proto`.
    """
    rows, columns = _checked_sides(message, field)
    dies = np.frombuffer(message.dies, np.uint8).reshape(rows, columns)
    try:
        if message.HasField("identity"):
            _identity_from_proto(message.identity)
        if message.HasField("geometry"):
            _geometry_from_proto(message.geometry)
        check_dies(dies)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(error.message, field=f"{field}.{error.field}") from error
    return dies


def _checked_sides(message: wafer_map_pb2.WaferMap, field: str) -> tuple[int, int]:
    """Return rows and columns of a message whose parts are as large as these say."""
    rows, columns = message.rows, message.columns
    for name, side in (("rows", rows), ("columns", columns)):
        if not 1 <= side <= MAX_SIDE:
            raise InvalidArgumentError(f"Expected 1 to {MAX_SIDE}. Received: {side}.", field=f"{field}.{name}")
    if len(message.dies) != rows * columns:
        raise InvalidArgumentError(
            f"Expected rows x columns = {rows * columns} bytes. Received: {len(message.dies)}.", field=f"{field}.dies"
        )
    if message.bins and len(message.bins) != rows * columns:
        raise InvalidArgumentError(
            f"Expected no bins or rows x columns = {rows * columns} of them. Received: {len(message.bins)}.",
            field=f"{field}.bins",
        )
    return rows, columns


def _identity_to_proto(identity: WaferIdentity) -> wafer_map_pb2.WaferIdentity:
    message = wafer_map_pb2.WaferIdentity(
        lot=identity.lot,
        wafer=identity.wafer,
        slot=identity.slot,
        product=identity.product,
        step=identity.step,
        tool=identity.tool,
    )
    if identity.measure_time is not None:
        message.measure_time.FromDatetime(identity.measure_time)
    return message


def _identity_from_proto(message: wafer_map_pb2.WaferIdentity) -> WaferIdentity:
    return WaferIdentity(
        lot=message.lot,
        wafer=message.wafer,
        slot=message.slot,
        product=message.product,
        step=message.step,
        tool=message.tool,
        measure_time=_time_from_proto(message.measure_time) if message.HasField("measure_time") else None,
    )


def _time_from_proto(message: Timestamp) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            f"Expected a time between the years 1 and 9999. Received: {message.seconds} s, {message.nanos} ns.",
            field="identity.measure_time",
        ) from error


def _geometry_from_proto(message: wafer_map_pb2.WaferGeometry) -> WaferGeometry:
    try:
        notch = Notch(message.notch)
    except ValueError as error:
        known = ", ".join(f"{side.value} ({side.name})" for side in Notch)
        raise InvalidArgumentError(
            f"Expected one of {known}. Received: {message.notch}.", field="geometry.notch"
        ) from error
    return WaferGeometry(notch=notch, die_pitch_x_mm=message.die_pitch_x_mm, die_pitch_y_mm=message.die_pitch_y_mm)
