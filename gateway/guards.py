"""What stands before every request: known host names, size limits, headers that keep other sites out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD_PREFIX: Final = "/media/uploads/"
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class BodyLimit:
    """Ends requests whose body is too large, whether they say its size beforehand or send it in chunks.

    Args:
        app: What it protects.
        upload_max_bytes: Largest body below UPLOAD_PREFIX.
        body_max_bytes: Largest body elsewhere.
    """

    def __init__(self, app: ASGIApp, upload_max_bytes: int, body_max_bytes: int) -> None:
        self._app = app
        self._upload_max_bytes = upload_max_bytes
        self._body_max_bytes = body_max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._upload_max_bytes if scope["path"].startswith(UPLOAD_PREFIX) else self._body_max_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            await _refuse(send, limit)
            return
        received, exceeded, started = 0, False, False

        async def counted() -> Message:
            nonlocal received, exceeded
            if exceeded:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except Exception:
            # The application sees the cut as a caller who hung up; what it raises about that is of no interest.
            if not exceeded:
                raise
        if exceeded and not started:
            await _refuse(send, limit)


class Headers:
    """Adds SECURITY_HEADERS to every answer.

    Args:
        app: What it protects.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def problem_body(reason: str, message: str) -> bytes:
    """Writes an error for scripts: `{"reason": "UPPER_SNAKE", "message": "…"}`."""
    return json.dumps({"reason": reason, "message": message}).encode()


async def _refuse(send: Send, limit: int) -> None:
    body = problem_body("FILE_TOO_LARGE", f"Expected a body of at most {limit} bytes. Send a smaller file.")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
