"""Classify wafers."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.values import Answers, FileAnswers, UploadFile
from services.common.wafer_map import WaferMap


class AnswersRoom:
    """Ask a model about wafers."""

    async def classify(
        self,
        model_id: str,
        maps: Sequence[WaferMap],
        *,
        version: int = 0,
        explain: bool = False,
        neighbours: int = 0,
    ) -> Answers:
        """Classifies wafers. A wafer that cannot be classified does not sink the others.

        Args:
            model_id: Name of the model, as `Project.model_id`.
            maps: Any number of wafers of any mix of sizes.
            version: Version of the model; 0 means the newest that is loaded.
            explain: Whether to answer with heat maps.
            neighbours: How many of the nearest taught wafers to answer with, 0 to 10.

        Raises:
            NotFoundError: No such model is loaded.
            UnavailableError: The predictor cannot be reached.
        """
        raise NotImplementedError

    async def classify_wafers(
        self, model_id: str, wafer_ids: Sequence[str], *, version: int = 0, explain: bool = False, neighbours: int = 0
    ) -> Answers:
        """Classifies wafers of the catalogue.

        Raises:
            NotFoundError: A wafer does not exist, or no such model is loaded.
            UnavailableError: The predictor cannot be reached.
        """
        raise NotImplementedError

    async def classify_files(
        self,
        model_id: str,
        files: Sequence[UploadFile],
        *,
        version: int = 0,
        explain: bool = False,
        neighbours: int = 0,
    ) -> FileAnswers:
        """Reads files and classifies what they hold. Nothing is stored.

        Raises:
            NotFoundError: No such model is loaded.
            InvalidArgumentError: There is no file, too many, or none holds a wafer (reason NO_WAFER_FOUND).
            ResourceExhaustedError: A file is larger than allowed (reason UPLOAD_TOO_LARGE).
            UnavailableError: The predictor cannot be reached.
        """
        raise NotImplementedError
