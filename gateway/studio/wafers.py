"""Wafers of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.values import Added, Change, WaferDetail, WaferPage
from services.common.dataset import Origin
from services.common.wafer_map import WaferMap


class WafersRoom:
    """List, draw, add, move and delete wafers."""

    async def page(
        self,
        project_id: str,
        class_id: str = "",
        *,
        generated: bool | None = None,
        page_size: int = 60,
        page_token: str = "",
    ) -> WaferPage:
        """Returns a page of wafers, newest first; as fast for 100,000 wafers as for 100.

        Args:
            project_id: The project.
            class_id: Only of this class; "" of all.
            generated: Only generated ones, only real ones, or both.
            page_size: Most wafers to return, 1 to 1,000.
            page_token: next_token of the page before.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: The token is not one of this list.
        """
        raise NotImplementedError

    async def get(self, wafer_id: str) -> WaferDetail:
        """Returns a wafer with its dies; also one that was deleted but not purged.

        Raises:
            NotFoundError: There is none.
        """
        raise NotImplementedError

    async def add(
        self,
        class_id: str,
        maps: Sequence[WaferMap],
        *,
        origin: Origin = Origin.UPLOADED,
        source_name: str = "",
    ) -> Added:
        """Adds wafers to a class: a camera picture, a pasted one, "Wrong? teach it".

        Args:
            class_id: The class.
            maps: The wafers. One whose dies the class holds already is left out.
            origin: How they came into being.
            source_name: Where they come from.

        Raises:
            NotFoundError: There is no such class.
        """
        raise NotImplementedError

    async def draw(self, class_id: str, dies: NDArray[np.uint8], *, lot: str = "") -> Added:
        """Adds a wafer that a person drew.

        Args:
            class_id: The class.
            dies: uint8 (rows, columns): 0 no die, 1 pass, 2 fail.
            lot: Its lot.

        Raises:
            InvalidArgumentError: It is no valid grid.
            NotFoundError: There is no such class.
        """
        raise NotImplementedError

    async def blank(self, project_id: str, *, rows: int = 0, columns: int = 0) -> NDArray[np.uint8]:
        """Returns an empty wafer to draw on: uint8 (rows, columns) of 0 and 1.

        Args:
            project_id: The project; the outline of its newest wafer is taken where sizes are 0, a round 32 x 32 otherwise.
            rows: Die rows, 0 to 1,024.
            columns: Die columns, 0 to 1,024.
        """
        raise NotImplementedError

    async def delete(self, wafer_ids: Sequence[str]) -> Change:
        """Deletes wafers of one project. Those deleted already are passed over.

        Raises:
            InvalidArgumentError: None was given, or they are of several projects.
            NotFoundError: One does not exist.
        """
        raise NotImplementedError

    async def move(self, wafer_ids: Sequence[str], class_id: str) -> Change:
        """Moves wafers to another class of their project.

        Raises:
            InvalidArgumentError: None was given, or they are of another project than the class.
            NotFoundError: One, or the class, does not exist.
        """
        raise NotImplementedError
