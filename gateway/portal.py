"""What every page and address of the portal works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.settings import GatewaySettings
from gateway.shelf import Shelf
from gateway.studio import Studio
from gateway.uploads import Tickets
from services.common.wafer_map import WaferMap


@dataclass(frozen=True, slots=True)
class Portal:
    """The portal of one process.

    Attributes:
        settings: Settings of the gateway.
        studio: Everything that people can do with projects.
        tickets: Permissions to upload.
        shelf: Pictures and files made for one page.
    """

    settings: GatewaySettings
    studio: Studio
    tickets: Tickets
    shelf: Shelf

    async def picture(self, wafer: WaferMap, size: int = 320, heat: NDArray[np.uint8] | None = None) -> str:
        """Draws a wafer that is in no class; returns the address of the picture."""
        return self.shelf.put(await self.studio.pictures.of_map(wafer, size=size, heat=heat))

    async def sheet(self, wafers: Sequence[WaferMap], tile: int = 112) -> tuple[str, int]:
        """Draws wafers that are in no class; returns the address of their sheet and how many stand in a row."""
        sprite = await self.studio.pictures.sprite_of_maps(wafers, tile=tile)
        return self.shelf.put(sprite.png), sprite.columns
