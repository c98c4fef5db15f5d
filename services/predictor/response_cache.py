"""Answers that are given again for the same inputs, where a model's configuration asks for it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from services.predictor.tensors import BYTES, Tensor, byte_size

Answers = dict[str, Tensor]


class ResponseCache:
    """The answers used last, as many as fit. Used from one event loop.

    Args:
        max_bytes: Most bytes of answers kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: OrderedDict[bytes, tuple[Answers, int]] = OrderedDict()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._max_bytes > 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the answers kept."""
        return self._bytes

    def get(self, key: bytes) -> Answers | None:
        """Returns the answers kept under a key, or None."""
        kept = self._answers.get(key)
        if kept is None:
            return None
        self._answers.move_to_end(key)
        return kept[0]

    def put(self, key: bytes, answers: Answers) -> None:
        """Keeps answers; those used longest ago make room."""
        size = sum(byte_size(each, BYTES) if each.dtype.hasobject else each.nbytes for each in answers.values())
        if size > self._max_bytes or key in self._answers:
            return
        # Copied, because rows of a batch would keep the whole batch.
        self._answers[key] = ({name: each.copy() for name, each in answers.items()}, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._answers.popitem(last=False)
            self._bytes -= freed


def key_of(owner: int, outputs: Sequence[str], tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    """Returns a key of a request.

    Args:
        owner: Serial number of what answers: the same version, loaded again, has other keys.
        outputs: Names of the outputs wanted.
        tensors: Inputs with their names, in an order of their own.
    """
    digest = hashlib.sha256(repr((owner, tuple(outputs))).encode())
    for name, tensor in tensors:
        digest.update(repr((name, tensor.dtype.str, tensor.shape)).encode())
        if tensor.dtype.hasobject:
            digest.update(repr(tensor.tolist()).encode())
        else:
            digest.update(tensor.tobytes())
    return digest.digest()
