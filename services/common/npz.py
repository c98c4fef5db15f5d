"""NumPy archives from strangers: sizes are checked by their headers before anything is unpacked.

`numpy.load` believes what it finds: a pickle runs code, and a header of a few bytes can ask for terabytes.
"""

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError, NotFoundError

MAX_UNPACKED_BYTES = 1 << 30
"""Most bytes that the arrays of one archive may unpack to, unless told otherwise."""
MAX_MEMBERS = 64
"""Most arrays in one archive."""

_MAX_HEADER = 4096
_CHUNK = 1 << 22
_KINDS = "buifUS"
DAMAGED_ZIP = (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What the header of an array in an archive says.

    Attributes:
        shape: its shape.
        dtype: its dtype: bool, integer, float or text.
        fortran_order: whether the array lies in column-major order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def size_bytes(self) -> int:
        """Size of the unpacked array."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayArchive:
    """An open `.npz`, a context manager. Arrays are read one by one, on demand.

    Args:
        source: path, bytes or an open, seekable binary file.
        max_unpacked_bytes: most bytes that the arrays may have together.

    Raises:
        InvalidArgumentError: it is no archive of plain arrays, is damaged or too large. Nothing was unpacked then.
    """

    def __init__(self, source: Path | bytes | IO[bytes], max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        except FileNotFoundError as error:
            raise NotFoundError("file", str(source)) from error
        except DAMAGED_ZIP as error:
            raise _invalid(
                f"Expected a NumPy .npz archive. Received a file that is none or is cut off ({error})"
            ) from error
        try:
            self.headers = self._read_headers(max_unpacked_bytes)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, name: str) -> NDArray[Any]:
        """Return one array.

        Args:
            name: a key of `headers`.

        Raises:
            InvalidArgumentError: there is no such array or its content is damaged.
        """
        if name not in self.headers:
            raise _invalid(f"Expected an array {name!r}. Received: {', '.join(self.headers) or 'no arrays'}")
        header = self.headers[name]
        raw = np.empty(header.size_bytes, np.uint8)
        self._fill(name, raw.data)
        flat = raw.view(header.dtype) if header.dtype.itemsize else np.zeros(math.prod(header.shape), header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran_order else "C")

    def _fill(self, name: str, target: memoryview) -> None:
        filled = 0
        try:
            with self._zip.open(f"{name}.npy") as member:
                _read_header(member)
                while filled < len(target):
                    chunk = member.read(min(_CHUNK, len(target) - filled))
                    if not chunk:
                        raise _invalid(
                            f"Array {name!r} ends after {filled} of {len(target)} bytes; the file is cut off"
                        )
                    target[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
                if member.read(1):
                    raise _invalid(f"Array {name!r} is longer than its header says")
        except DAMAGED_ZIP as error:
            raise _invalid(f"Array {name!r} is damaged ({error})") from error

    def _read_headers(self, max_unpacked_bytes: int) -> dict[str, ArrayHeader]:
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise _invalid(f"Expected at most {MAX_MEMBERS} arrays. Received: {len(members)}")
        headers: dict[str, ArrayHeader] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in headers:
                raise _invalid(f"Expected arrays (.npy) with different names only. Received: {member.filename[:80]!r}")
            try:
                with self._zip.open(member) as file:
                    headers[name] = _read_header(file)
            except DAMAGED_ZIP as error:
                raise _invalid(f"Array {name[:80]!r} is damaged or no plain array ({error})") from error
        total = sum(header.size_bytes for header in headers.values())
        if total > max_unpacked_bytes:
            raise _invalid(f"Expected at most {max_unpacked_bytes:,} bytes unpacked. Received: {total:,}")
        return headers


def _read_header(file: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=_MAX_HEADER)
    else:
        raise ValueError(f"unknown array format {version}")
    if dtype.kind not in _KINDS or any(side < 0 for side in shape):
        raise ValueError(f"expected numbers or texts, received {dtype} {shape}")
    return ArrayHeader(shape=tuple(shape), dtype=dtype, fortran_order=fortran_order)


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{message}.", field="file")
