"""Pictures of wafers: pass in green, fail in dark red, no die transparent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.values import Sprite
from services.common.wafer_map import WaferMap


class PicturesRoom:
    """PNGs of wafers."""

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
        raise NotImplementedError

    async def sprite(self, wafer_ids: Sequence[str], *, tile: int = 48) -> Sprite:
        """Returns the thumbnails of some wafers, in their order; at most 1,000.

        Raises:
            NotFoundError: One does not exist.
        """
        raise NotImplementedError

    async def sprite_of_maps(self, maps: Sequence[WaferMap], *, tile: int = 48) -> Sprite:
        """Returns the thumbnails of wafers that are in no class; `wafer_ids` of the sprite are empty texts."""
        raise NotImplementedError

    async def wafer(self, wafer_id: str, *, size: int = 320) -> bytes:
        """Returns the PNG of a wafer, whole dies, its longer side about `size` pixels.

        Raises:
            NotFoundError: There is none.
        """
        raise NotImplementedError

    async def of_map(self, wafer: WaferMap, *, size: int = 320, heat: NDArray[np.uint8] | None = None) -> bytes:
        """Returns the PNG of a wafer map.

        Args:
            wafer: The map.
            size: Longer side, about, 8 to 4,096 pixels.
            heat: uint8 (rows, columns) laid over it, 255 the hottest; from `Answer.heat`.

        Raises:
            InvalidArgumentError: The heat has another shape than the wafer.
        """
        raise NotImplementedError
