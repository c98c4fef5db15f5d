"""Data types and bytes of tensors, as the open inference protocol knows them.

The bytes of a tensor are little-endian and row-major, without padding. BYTES elements are a length as uint32 and that
many bytes each. Nothing here trusts a length that came over the wire.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
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


LONGEST_SIDE = 2**31 - 1
"""Largest dimension of a tensor."""


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


def as_received(tensor: Tensor) -> Tensor:
    """Returns an output of a graph as an input would come from a caller: strings as `bytes`."""
    if not tensor.dtype.hasobject:
        return tensor
    encoded = np.empty(tensor.shape, np.object_)
    for index, each in np.ndenumerate(tensor):
        encoded[index] = each if isinstance(each, bytes) else str(each).encode()
    return encoded


def checked_shape(
    shape: tuple[int, ...], info: TensorInfo, max_batch_size: int, longest: int, field: str
) -> tuple[int, ...]:
    """Returns a shape that a model takes.

    Args:
        shape: Shape of an input.
        info: What the model takes there.
        max_batch_size: Most elements of a batch; 0 where the first dimension is none of a batch.
        longest: Largest dimension that is allowed where any goes.
        field: Where in the request it is.

    Raises:
        InvalidArgumentError: The model does not take it.
    """
    fits = len(shape) == len(info.shape) and not (max_batch_size and shape[0] > max_batch_size)
    if fits:
        for side, expected in zip(shape, info.shape, strict=True):
            if not 1 <= side <= longest or expected not in (-1, side):
                fits = False
    if not fits:
        batch = f" with 1 to {max_batch_size} elements in the batch" if max_batch_size else ""
        sides = f", where -1 is 1 to {longest}" if -1 in info.shape[bool(max_batch_size) :] else ""
        raise InvalidArgumentError(
            f"Expected the shape {list(info.shape)} of {info.name}{batch}{sides}. Received: {list(shape[:8])}.", field
        )
    return shape


def check_batch_sizes(tensors: Iterable[Tensor]) -> None:
    """Raises InvalidArgumentError unless the first dimensions of tensors are the same."""
    batches = {each.shape[0] for each in tensors}
    if len(batches) > 1:
        raise InvalidArgumentError(
            f"Expected inputs with one batch size. Received: {sorted(batches)[:5]} as their first dimensions.",
            "inputs",
        )


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
