"""Pictures and files that are made for one page and fetched by its browser soon after."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass

MAX_BYTES = 128 * 1024 * 1024
"""Most bytes on the shelf; the oldest leave first."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something on the shelf.

    Attributes:
        content: Its bytes.
        media_type: Their media type.
        download_name: Name under which browsers save it; empty: they show it.
    """

    content: bytes
    media_type: str
    download_name: str = ""


class Shelf:
    """Keeps things under names that nobody can guess, until newer ones need the room.

    Args:
        max_bytes: Most bytes to keep.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._names: dict[str, str] = {}

    def put(self, content: bytes, media_type: str = "image/png", download_name: str = "", *, key: str = "") -> str:
        """Puts something on the shelf; returns its address.

        Args:
            content: Its bytes.
            media_type: Their media type.
            download_name: Name under which browsers save it; empty: they show it.
            key: What it is made of: the same key again keeps the address, so that browsers need not fetch it again.
        """
        name = self._names.get(key) or secrets.token_urlsafe(18)
        if key:
            self._names[key] = name
        if name in self._items:
            self._items.move_to_end(name)
            return f"/media/shelf/{name}"
        self._items[name] = Item(content, media_type, download_name)
        self._bytes += len(content)
        while self._bytes > self._max_bytes and len(self._items) > 1:
            left, oldest = self._items.popitem(last=False)
            self._bytes -= len(oldest.content)
            self._names = {key: name for key, name in self._names.items() if name != left}
        return f"/media/shelf/{name}"

    def get(self, name: str) -> Item | None:
        """Returns what lies under a name, or None when it has left."""
        return self._items.get(name)
