"""Data types and bytes of tensors, as the open inference protocol knows them.

The bytes of a tensor are little-endian and row-major, without padding. BYTES elements are a length as uint32 and that
many bytes each. Nothing here trusts a length that came over the wire.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError

Tensor = NDArray[Any]

BYTES, BF16 = "BYTES", "BF16"

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    # NumPy has no such type; its bits are carried as they are.
    BF16: np.dtype("<u2"),
    BYTES: np.dtype(np.object_),
}
"""NumPy's type of each data type. BYTES: objects of `bytes`."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Input or output of a model.

    Attributes:
        name: Name.
        datatype: Type of its elements, a key of DTYPES.
        shape: Its dimensions, that of the batch included; -1 where any length goes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def tensor_from_bytes(data: bytes | memoryview, datatype: str, shape: Sequence[int], field: str) -> Tensor:
    """Returns a tensor, without a copy of its numbers.

    Args:
        data: Its bytes.
        datatype: A key of DTYPES.
        shape: Its dimensions, each at least 0.
        field: Where in the request it is.

    Raises:
        InvalidArgumentError: There are more or fewer bytes than the shape needs.
    """
    elements = math.prod(shape)
    if datatype == BYTES:
        return _strings_from_bytes(data, elements, field).reshape(shape)
    dtype = DTYPES[datatype]
    if len(data) != elements * dtype.itemsize:
        raise InvalidArgumentError(
            f"Expected {elements * dtype.itemsize} bytes for the shape {list(shape)[:8]}. Received: {len(data)}.", field
        )
    return np.frombuffer(data, dtype).reshape(shape)


def tensor_to_bytes(tensor: Tensor, datatype: str) -> bytes:
    """Returns the bytes of a tensor.

    Args:
        tensor: The tensor; elements of BYTES are `bytes` or `str`.
        datatype: A key of DTYPES.
    """
    if datatype != BYTES:
        return np.ascontiguousarray(tensor, DTYPES[datatype]).tobytes()
    parts = []
    for element in tensor.ravel():
        encoded = element if isinstance(element, bytes) else str(element).encode()
        parts += [struct.pack("<I", len(encoded)), encoded]
    return b"".join(parts)


def byte_size(tensor: Tensor, datatype: str) -> int:
    """Returns how many bytes `tensor_to_bytes` gives."""
    if datatype != BYTES:
        return tensor.size * DTYPES[datatype].itemsize
    return sum(4 + len(each if isinstance(each, bytes) else str(each).encode()) for each in tensor.ravel())


def classified(scores: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    """Returns the best classes of each element of a batch, as the classification extension writes them.

    Args:
        scores: (N, ...) numbers; the classes of an element are its numbers in their order.
        count: Classes wanted, at least 1; as many as there are at most.
        labels: Names of the classes, or fewer.

    Returns:
        BYTES (N, min(count, classes)): `value:index` or `value:index:label`, best first; of equals the first one.
    """
    rows = scores.reshape(scores.shape[0], -1)
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = np.empty(order.shape, np.object_)
    for row, indices in enumerate(order):
        for place, index in enumerate(indices):
            label = f":{labels[index]}" if index < len(labels) else ""
            texts[row, place] = f"{float(rows[row, index]):f}:{index}{label}".encode()
    return texts


def _strings_from_bytes(data: bytes | memoryview, elements: int, field: str) -> Tensor:
    # Each element takes at least its length: a shape that claims more is refused before anything is made for it.
    if len(data) < 4 * elements:
        raise InvalidArgumentError(
            f"Expected {elements} strings, each behind its length. Received: {len(data)} bytes.", field
        )
    strings = np.empty(elements, np.object_)
    start = 0
    for index in range(elements):
        if start + 4 > len(data):
            raise InvalidArgumentError(
                f"Expected {elements} strings. Received: {len(data)} bytes, which end in the length of string {index}.",
                field,
            )
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if length > len(data) - start:
            raise InvalidArgumentError(
                f"Expected string {index} of {length} bytes. Received: only {len(data) - start} bytes more.", field
            )
        strings[index] = bytes(data[start : start + length])
        start += length
    if start != len(data):
        raise InvalidArgumentError(
            f"Expected {elements} strings in {start} bytes. Received: {len(data) - start} bytes more.", field
        )
    return strings
