"""A round wafer to paint failed dies on."""

from __future__ import annotations

import numpy as np
from nicegui.element import Element
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError

SMALLEST, LARGEST = 10, 80


class DrawPad(Element, component="draw_pad.js"):
    """A round wafer to paint on.

    Args:
        label: Name and keys, for screen readers.
        across: Dies across the wafer.
    """

    def __init__(self, label: str, across: int = 36) -> None:
        super().__init__()
        self.props.update({"label": label, "across": across, "brush": 2, "erase": False})

    def set(self, **values: int | bool) -> None:
        """Changes `across` (which clears the wafer), `brush` (dies) or `erase`."""
        self.props.update(values)
        self.update()

    def clear_wafer(self) -> None:
        """Makes every die good."""
        self.run_method("clear")

    def scatter(self) -> None:
        """Fails some dies at random."""
        self.run_method("scatter")

    async def read(self) -> NDArray[np.uint8]:
        """Returns the painted grid, (rows, columns).

        Raises:
            InvalidArgumentError: The browser sent something that is no grid.
        """
        return parse_grid(await self.run_method("read"))


def parse_grid(answer: object) -> NDArray[np.uint8]:
    """Reads the grid that the pad sends.

    Args:
        answer: `{"across": n, "dies": "0120…"}`, n * n digits in row-major order.

    Returns:
        Grid, (n, n), 0 no die, 1 pass, 2 fail.

    Raises:
        InvalidArgumentError: It is anything else.
    """
    if isinstance(answer, dict):
        across, dies = answer.get("across"), answer.get("dies")
        good = isinstance(across, int) and SMALLEST <= across <= LARGEST and isinstance(dies, str)
        if good and len(dies) == across * across and not set(dies) - set("012"):  # type: ignore[arg-type,operator]
            return np.frombuffer(str(dies).encode(), dtype=np.uint8).reshape(across, across) - np.uint8(ord("0"))  # type: ignore[arg-type]
    raise InvalidArgumentError("Expected a painted wafer from the browser. Received something else. Draw it again.")
