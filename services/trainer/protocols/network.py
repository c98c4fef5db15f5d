"""A pretrained network that embeds wafers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.head import Array
from services.common.preprocessing import planes_of
from services.trainer.backbones import ORIENTATIONS, BackboneLibrary, find_backbone
from services.trainer.features import embed, embed_copies, embedder
from services.trainer.network import embedding_model
from services.trainer.protocols.progress import Progress
from services.trainer.trunks import load_known_patterns, load_trunk

Grids = Sequence[NDArray[np.uint8]]


class Network:
    """A pretrained network; loading it takes seconds, so that a protocol makes one and keeps it.

    Attributes:
        known: patterns that it knows, or None.

    Args:
        backbone_id: which network.
        library: where its weights lie.

    Raises:
        InvalidArgumentError: there is no such network.
        FailedPreconditionError: its weights are missing or damaged.
    """

    def __init__(self, backbone_id: str, library: BackboneLibrary) -> None:
        self._backbone = find_backbone(backbone_id)
        self.known = load_known_patterns(self._backbone, library)
        self._embed = embedder(embedding_model(load_trunk(self._backbone, library), self._backbone.orientations))

    @property
    def copies(self) -> int:
        """Varied copies that `embed_copies` makes of each wafer: one where the network itself turns it."""
        return 1 if self._backbone.orientations > 1 else ORIENTATIONS

    def embed(self, grids: Grids, what: str = "embedding") -> Array:
        """Returns the embeddings (N, D) of wafers, N >= 1.

        Args:
            grids: uint8 (rows, columns) each.
            what: what is told of how far it has come.
        """
        return embed(self._embed, self._planes(grids), Progress(what), self._backbone.orientations)

    def embed_copies(self, grids: Grids, what: str = "embedding copies") -> Array:
        """Returns the embeddings (N, copies, D) of wafers and of their varied copies, at full augmentation, seed 0."""
        return embed_copies(
            self._embed, self._planes(grids), self.copies, 1.0, 0, Progress(what), self._backbone.orientations
        )

    def _planes(self, grids: Grids) -> NDArray[np.float16]:
        return planes_of(grids, self._backbone.size).astype(np.float16)
