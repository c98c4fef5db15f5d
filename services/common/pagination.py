"""Pages of lists (google.aip.dev/158): page sizes and opaque page tokens."""

from __future__ import annotations

import base64
import binascii
import json

from services.common.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Cursor = list[str | int | float]
"""Where a page begins: the sort key of the last item of the page before."""


def page_size_of(requested: int) -> int:
    """Returns the page size to use: 0 means 50, over 1,000 means 1,000.

    Args:
        requested: Size in the request.

    Raises:
        InvalidArgumentError: It is negative.
    """
    if requested < 0:
        raise InvalidArgumentError(f"Expected 0 or more. Received: {requested}.", field="page_size")
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode_page_token(collection: str, cursor: Cursor) -> str:
    """Makes the token of the page after a cursor.

    Args:
        collection: Name of the list, so that a token of another list is refused.
        cursor: Sort key of the last item of this page.
    """
    payload = json.dumps([collection, *cursor], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(payload).decode().rstrip("=")


def decode_page_token(collection: str, token: str) -> Cursor | None:
    """Reads a token that `encode_page_token` made.

    Args:
        collection: Name of the list.
        token: Token from the request; empty for the first page.

    Returns:
        The cursor, or None for the first page.

    Raises:
        InvalidArgumentError: The token is not one of this list.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        payload = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        payload = None
    match payload:
        case [str(name), *cursor] if name == collection and all(isinstance(part, str | int | float) for part in cursor):
            return cursor
    raise InvalidArgumentError(
        f"Expected the next_page_token of an earlier page of this list, or nothing. Received: {token[:80]!r}.",
        field="page_token",
    )
