"""The pretrained networks that can be taught: names, figures, where their weights lie, and whether those are whole.

Missing or damaged weights are an error, never a silent start from random ones. Nothing here imports TensorFlow, so that
the service can check requests without it; the networks themselves are in `services.trainer.trunks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from services.common.files import file_sha256
from services.common.shipped import shipped_file

WEIGHTS_FOLDER = Path(__file__).parent / "pretrained"
"""Folder of the shipped weights, their index and the model card."""
OUTLIERS_NAME = "outliers.npz"
"""Wafer set of simulated patterns beside the weights; see `services.trainer.outliers`."""
ORIENTATIONS = 8
"""Rotations by quarter turns and their mirror images: the symmetries of a square."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network that can be taught.

    Attributes:
        backbone_id: name in requests and manifests.
        display_name: text for people.
        size: cells along each side of the planes.
        weights: name of the weights file in the weights folder; "" when the file is supplied by a setting.
        parameters: weights in the network.
        mflops: multiplications of one answer in millions, those of the convolutions, all orientations together.
        orientations: 8 when answers are averaged over all orientations of the wafer, else 1.
        model_size: "fast", "balanced" or "best" when it is the default of that size, else "".
    """

    backbone_id: str
    display_name: str
    size: int
    weights: str
    parameters: int
    mflops: float
    orientations: int = 1
    model_size: str = ""


BACKBONES: Mapping[str, Backbone] = {
    each.backbone_id: each
    for each in (
        Backbone("wafer-fast", "Fast (48 cells)", 48, "wafer-fast.npz", 579_328, 27.574, model_size="fast"),
        Backbone(
            "wafer-balanced", "Balanced (64 cells)", 64, "wafer-balanced.npz", 781_296, 71.352, model_size="balanced"
        ),
        Backbone(
            "wafer-best",
            "Best (64 cells, eight orientations)",
            64,
            "wafer-balanced.npz",
            781_296,
            570.818,
            orientations=ORIENTATIONS,
            model_size="best",
        ),
        Backbone("mobilenet-v2", "MobileNetV2 (96 pixels, own weights file)", 96, "", 2_257_984, 55.009),
    )
}
"""All backbones by id; the defaults of the model sizes come first."""


@dataclass(frozen=True, slots=True)
class BackboneLibrary:
    """Where the weights of the backbones lie.

    Attributes:
        folder: folder of the shipped weights.
        mobilenet_v2_weights: weights file of Keras' MobileNetV2 without its top (`.weights.h5` or `.h5`), or None.
    """

    folder: Path = WEIGHTS_FOLDER
    mobilenet_v2_weights: Path | None = None

    def check(self, backbone: Backbone) -> Path:
        """Returns the weights file of a backbone after checking that it is the one that was shipped.

        Raises:
            FailedPreconditionError: it is missing or damaged; the message says what to do.
        """
        if not backbone.weights:
            return self._supplied(backbone)
        try:
            return self._checked(backbone.weights)
        except DataLossError as error:
            raise unusable(backbone, error.message) from error

    def check_outliers(self) -> Path:
        """Returns the wafer set of simulated patterns after checking that it is the one that was shipped.

        Raises:
            FailedPreconditionError: it is missing or damaged; the message says what to do.
        """
        try:
            return self._checked(OUTLIERS_NAME)
        except DataLossError as error:
            raise FailedPreconditionError(error.message, reason="OUTLIERS_UNAVAILABLE") from error

    def _checked(self, name: str) -> Path:
        """Returns a file of the folder whose hash is that of the index.

        Raises:
            DataLossError: it is missing or damaged.
        """
        return shipped_file(self.folder, name, "Install this release again, or run `make pretrain`.")

    def sha256(self, backbone: Backbone) -> str:
        """Returns the hash of the checked weights file; raises as `check`."""
        return file_sha256(self.check(backbone))

    def _supplied(self, backbone: Backbone) -> Path:
        path = self.mobilenet_v2_weights
        if path is None or not path.is_file():
            raise unusable(
                backbone,
                "Its weights are not part of this release. Set TEACHWAFER_TRAINER_MOBILENET_V2_WEIGHTS to Keras' "
                f"weights file without top. Received: {path or 'nothing'}.",
            )
        return path


def find_backbone(backbone_id: str) -> Backbone:
    """Returns a backbone by name.

    Raises:
        InvalidArgumentError: there is none of this name.
    """
    if backbone_id not in BACKBONES:
        raise InvalidArgumentError(
            f"Expected one of {', '.join(BACKBONES)}. Received: {backbone_id[:100]!r}.",
            field="training_job.config.backbone",
        )
    return BACKBONES[backbone_id]


def backbone_of_size(model_size: str) -> Backbone:
    """Returns the default backbone of "fast", "balanced" or "best"."""
    return next(each for each in BACKBONES.values() if each.model_size == model_size)


def unusable(backbone: Backbone, why: str) -> FailedPreconditionError:
    """Returns the error that says why a backbone cannot be used and what to do."""
    return FailedPreconditionError(
        f"The backbone {backbone.backbone_id} cannot be used. {why}", reason="BACKBONE_UNAVAILABLE"
    )
