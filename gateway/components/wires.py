"""Lines from each class card to the training card and on to the Try card."""

from __future__ import annotations

from nicegui.element import Element


class Wires(Element, component="wires.js"):
    """Lines between the elements marked `data-wire=class`, `train` and `try` of the surrounding element."""

    def set_live(self, live: bool) -> None:
        """Makes the lines flow while a model is taught."""
        self.props["live"] = live
        self.update()
