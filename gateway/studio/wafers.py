"""Wafers of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from gateway.catalogue import projects, wafers
from gateway.catalogue.wafer_rows import NewWafer
from gateway.studio.desk import Desk
from gateway.studio.people import current_person
from gateway.values import Added, Change, WaferDetail, WaferPage
from services.common.dataset import Origin
from services.common.errors import InvalidArgumentError
from services.common.pagination import MAX_PAGE_SIZE
from services.common.wafer_map import MAX_SIDE, PASS, WaferIdentity, WaferMap

_BLANK_SIDE = 32


class WafersRoom:
    """List, draw, add, move and delete wafers, and say what else they show."""

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
    ) -> WaferPage:
        """Returns a page of wafers, newest first; as fast for 100,000 wafers as for 100.

        Args:
            project_id: The project.
            class_id: Only those that show this class; "" all.
            generated: Only generated ones, only real ones, or both.
            page_size: Most wafers to return, 1 to 1,000.
            page_token: next_token of the page before.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: The token is not one of this list.
        """
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        return await self._desk.read(
            lambda connection: wafers.page(connection, project_id, class_id, generated, size, page_token)
        )

    async def get(self, wafer_id: str) -> WaferDetail:
        """Returns a wafer with its dies; also one that was deleted but not purged.

        Raises:
            NotFoundError: There is none.
        """
        return (await self._desk.read(lambda connection: wafers.details(connection, [wafer_id])))[0]

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
        new = [NewWafer(each, class_id, origin, source_name=source_name) for each in maps]
        person = current_person()
        ids, duplicates, change = await self._desk.write(
            lambda connection: wafers.add(connection, class_id, new, person)
        )
        return Added(tuple(ids), duplicates, change)

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
        return await self.add(class_id, [WaferMap(dies, WaferIdentity(lot=lot))], origin=Origin.DRAWN)

    async def blank(self, project_id: str, *, rows: int = 0, columns: int = 0) -> NDArray[np.uint8]:
        """Returns an empty wafer to draw on: uint8 (rows, columns) of 0 and 1.

        Args:
            project_id: The project; its newest wafer gives the outline where sizes are 0, or a circle of 32 x 32.
            rows: Die rows, 0 to 1,024.
            columns: Die columns, 0 to 1,024.
        """
        if not (0 <= rows <= MAX_SIDE and 0 <= columns <= MAX_SIDE):
            raise InvalidArgumentError(
                f"Expected 0 to {MAX_SIDE} rows and columns. Received: {rows} x {columns}.", "rows"
            )

        def work(connection: Connection) -> WaferMap | None:
            projects.get(connection, project_id)
            return wafers.newest_map(connection, project_id)

        newest = await self._desk.read(work)
        if newest is not None and rows in (0, newest.rows) and columns in (0, newest.columns):
            return np.minimum(newest.dies, PASS)
        return _round_outline(rows or _BLANK_SIDE, columns or _BLANK_SIDE)

    async def delete(self, wafer_ids: Sequence[str]) -> Change:
        """Deletes wafers of one project. Those deleted already are passed over.

        Raises:
            InvalidArgumentError: None was given, or they are of several projects.
            NotFoundError: One does not exist.
        """
        person = current_person()
        return await self._desk.write(lambda connection: wafers.delete(connection, wafer_ids, person))

    async def move(self, wafer_ids: Sequence[str], class_id: str) -> Change:
        """Moves wafers to another class of their project.

        Raises:
            InvalidArgumentError: None was given, or they are of another project than the class.
            NotFoundError: One, or the class, does not exist.
        """
        person = current_person()
        return await self._desk.write(lambda connection: wafers.move(connection, wafer_ids, class_id, person))

    async def show(self, wafer_ids: Sequence[str], class_id: str, shown: bool) -> Change:
        """Lets wafers show a class beside their own, or show it no longer.

        A wafer that shall no longer show the class that it stands in goes to the next one that it shows; where there is
        none, it stays.

        Raises:
            InvalidArgumentError: No wafer was given, or they are of another project than the class.
            NotFoundError: One, or the class, does not exist.
            FailedPreconditionError: Wafers of the project show one pattern each (reason ONE_PATTERN), or the class, or
                the one of a wafer, is that of wafers without a pattern (reason NONE_SHOWS_NOTHING).
        """
        person = current_person()
        return await self._desk.write(lambda connection: wafers.show(connection, wafer_ids, class_id, shown, person))


def _round_outline(rows: int, columns: int) -> NDArray[np.uint8]:
    """Returns a grid of passed dies whose centres lie inside the ellipse that fills it."""
    y = (np.arange(rows) + 0.5) / rows * 2 - 1
    x = (np.arange(columns) + 0.5) / columns * 2 - 1
    return (x[None, :] ** 2 + y[:, None] ** 2 <= 1).astype(np.uint8)
