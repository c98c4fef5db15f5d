"""Pictures of wafers: pass in green, fail in dark red, no die transparent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from gateway.catalogue import wafers
from gateway.studio.desk import Desk
from gateway.studio.rendering import sprite_png, wafer_png
from gateway.values import Sprite
from services.common.errors import InvalidArgumentError
from services.common.pagination import MAX_PAGE_SIZE
from services.common.wafer_map import WaferMap


class PicturesRoom:
    """PNGs of wafers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(
        self,
        project_id: str,
        class_id: str = "",
        *,
        generated: bool | None = None,
        page_size: int = 60,
        page_token: str = "",
        tile: int = 48,
    ) -> Sprite:
        """Returns the thumbnails of exactly the wafers that `Studio.wafers.page` returns for the same arguments.

        Args:
            project_id: The project.
            class_id: Only of this class; "" of all.
            generated: Only generated ones, only real ones, or both.
            page_size: Most wafers, 1 to 1,000.
            page_token: next_token of the page before.
            tile: Side of a thumbnail, 8 to 256 pixels.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: The token is not one of this list.
        """
        found = await self._desk.read(
            lambda connection: wafers.page(
                connection, project_id, class_id, generated, max(1, min(page_size, MAX_PAGE_SIZE)), page_token
            )
        )
        return await self.sprite([each.wafer_id for each in found.wafers], tile=tile)

    async def sprite(self, wafer_ids: Sequence[str], *, tile: int = 48) -> Sprite:
        """Returns the thumbnails of some wafers, in their order; at most 1,000.

        Raises:
            NotFoundError: One does not exist.
        """
        if len(wafer_ids) > MAX_PAGE_SIZE:
            raise InvalidArgumentError(
                f"Expected at most {MAX_PAGE_SIZE} wafers. Received: {len(wafer_ids)}. Ask for them in pages.",
                "wafer_ids",
            )

        def work(connection: Connection) -> Sprite:
            grids = [each.map.dies for each in wafers.details(connection, wafer_ids)]
            return _sprite(grids, tuple(wafer_ids), tile)

        return await self._desk.read(work)

    async def sprite_of_maps(self, maps: Sequence[WaferMap], *, tile: int = 48) -> Sprite:
        """Returns the thumbnails of wafers that are in no class; `wafer_ids` of the sprite are empty texts."""
        grids = [each.dies for each in maps]
        return await asyncio.to_thread(_sprite, grids, ("",) * len(maps), tile)

    async def wafer(self, wafer_id: str, *, size: int = 320) -> bytes:
        """Returns the PNG of a wafer, whole dies, its longer side about `size` pixels.

        Raises:
            NotFoundError: There is none.
        """
        (detail,) = await self._desk.read(lambda connection: wafers.details(connection, [wafer_id]))
        return await self.of_map(detail.map, size=size)

    async def of_map(self, wafer: WaferMap, *, size: int = 320, heat: NDArray[np.uint8] | None = None) -> bytes:
        """Returns the PNG of a wafer map.

        Args:
            wafer: The map.
            size: Longer side, about, 8 to 4,096 pixels.
            heat: uint8 (rows, columns) laid over it, 255 the hottest; from `Answer.heat`.

        Raises:
            InvalidArgumentError: The heat has another shape than the wafer.
        """
        return await asyncio.to_thread(wafer_png, wafer, size, heat)


def _sprite(grids: Sequence[NDArray[np.uint8]], wafer_ids: tuple[str, ...], tile: int) -> Sprite:
    png, columns = sprite_png(grids, tile)
    return Sprite(png, tile, columns, wafer_ids, hashlib.sha256(png).hexdigest()[:32])
