"""Addresses beside the pages: pictures of wafers, uploads, downloads, health."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from gateway.portal import Portal
from gateway.uploads import safe_name
from services.common.errors import NotFoundError, TeachwaferError
from services.common.model_repository import ModelRepository
from services.common.wafer_set import write_wafer_set

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""HTTP status of each gRPC status; others are 500."""

KEEP = {"Cache-Control": "private, max-age=86400"}
"""For pictures whose address changes with their content."""


def media_router(portal: Portal) -> APIRouter:
    """Makes the addresses below `/media` and `/healthz`."""
    router = APIRouter(include_in_schema=False)
    _add_pictures(router, portal)
    _add_uploads(router, portal)
    _add_downloads(router, portal)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The portal serves; whether the services do, its pages say."""
        return {"status": "ok"}

    return router


async def error_response(_: Request, error: Exception) -> Response:
    """Answers what went wrong as JSON: `{"reason": …, "message": …}`."""
    if not isinstance(error, TeachwaferError):
        raise error
    status = HTTP_STATUS.get(error.code.name, 500)
    return JSONResponse({"reason": error.reason, "message": error.message}, status_code=status)


def _add_pictures(router: APIRouter, portal: Portal) -> None:
    @router.get("/media/wafers/{wafer_id}.png")
    async def wafer(wafer_id: str, size: Annotated[int, Query(ge=8, le=1024)] = 320) -> Response:
        """Picture of a wafer of the catalogue; its dies never change."""
        return Response(await portal.studio.pictures.wafer(wafer_id, size=size), media_type="image/png", headers=KEEP)

    @router.get("/media/shelf/{name}")
    async def shelf(name: str) -> Response:
        """Something that a page made for its browser."""
        item = portal.shelf.get(name)
        if item is None:
            raise NotFoundError("picture", name)
        headers = dict(KEEP)
        if item.download_name:
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(item.download_name)}"
        return Response(item.content, media_type=item.media_type, headers=headers)


def _add_uploads(router: APIRouter, portal: Portal) -> None:
    @router.post("/media/uploads/{ticket}", status_code=201)
    async def upload(ticket: str, request: Request, x_file_name: Annotated[str, Header(max_length=4000)]) -> Response:
        """Takes one file as the raw body; only with the ticket and the session of a page that is open."""
        path = portal.tickets.place(ticket, str(request.session.get("id", "")))
        name = safe_name(unquote(x_file_name))
        try:
            await _write(request.stream(), path)
        except (ClientDisconnect, OSError):
            path.unlink(missing_ok=True)
            raise
        return JSONResponse({"id": portal.tickets.add(ticket, path, name)}, status_code=201)


async def _write(chunks: AsyncIterator[bytes], path: Path) -> None:
    """Writes a body into a file as it arrives."""
    file = await asyncio.to_thread(path.open, "xb")
    try:
        async for chunk in chunks:
            await asyncio.to_thread(file.write, chunk)
    finally:
        await asyncio.to_thread(file.close)


def _add_downloads(router: APIRouter, portal: Portal) -> None:
    @router.get("/media/projects/{project_id}/project.zip")
    async def project(project_id: str) -> Response:
        """The project as one file."""
        name = await portal.studio.projects.export_name(project_id)
        target = _temporary(portal, ".zip")
        await portal.studio.projects.export_file(project_id, target)
        return FileResponse(target, filename=name, media_type="application/zip", background=_removal(target))

    @router.get("/media/projects/{project_id}/classes/{class_id}/wafers.npz")
    async def wafers(project_id: str, class_id: str) -> Response:
        """The wafers of a class as a wafer set."""
        classes = {each.class_id: each.name for each in await portal.studio.classes.list(project_id)}
        if class_id not in classes:
            raise NotFoundError("class", class_id)
        details = []
        token = ""
        while True:
            page = await portal.studio.wafers.page(project_id, class_id, page_size=1000, page_token=token)
            details += [await portal.studio.wafers.get(each.wafer_id) for each in page.wafers]
            token = page.next_token
            if not token:
                break
        target = _temporary(portal, ".npz")
        await asyncio.to_thread(
            write_wafer_set,
            target,
            [each.map.dies for each in details],
            # A wafer with several patterns is labelled as uploads are.
            labels=["+".join(classes[each] for each in (d.info.class_id, *d.info.also)) for d in details],
            groups=[each.info.lot for each in details],
            sources=[each.info.source_name for each in details],
        )
        name = f"{classes[class_id]}.npz"
        return FileResponse(target, filename=name, media_type="application/octet-stream", background=_removal(target))

    @router.get("/media/models/{model_id}/{version}/model.onnx")
    async def onnx(model_id: str, version: int) -> Response:
        """The ONNX file of a published version."""
        repository = ModelRepository(portal.settings.resolved_model_repository)
        folder = await asyncio.to_thread(repository.folder, model_id, version)
        return FileResponse(
            folder / "model.onnx", filename=f"{model_id}-{version}.onnx", media_type="application/octet-stream"
        )


def _temporary(portal: Portal, ending: str) -> Path:
    """Returns a path for a file that lives for one download."""
    with tempfile.NamedTemporaryFile(dir=portal.settings.upload_folder, suffix=ending, delete=True) as file:
        return Path(file.name)


def _removal(path: Path) -> BackgroundTask:
    def remove() -> None:
        with contextlib.suppress(OSError):
            path.unlink()

    return BackgroundTask(remove)
