"""How good a model is."""

from __future__ import annotations

from gateway.values import CellWafer, EvaluationView


class EvaluationRoom:
    """Scores of trainings, and the wafers behind them."""

    async def of_run(self, run_id: str, *, part: str = "") -> EvaluationView:
        """Returns the scores of a succeeded training.

        Args:
            run_id: The training.
            part: `test` or `tune`; "" means the locked test where there is one.

        Raises:
            NotFoundError: There is no such training, or its data set has no such part (reason NO_SUCH_PART).
            FailedPreconditionError: It has not succeeded (reason NOT_FINISHED).
        """
        raise NotImplementedError

    async def cell(
        self, run_id: str, true_id: str, predicted_id: str, *, part: str = "", limit: int = 200
    ) -> tuple[CellWafer, ...]:
        """Returns the wafers of a confusion cell, the most certain first.

        Args:
            run_id: The training.
            true_id: Class that the wafers were taught as.
            predicted_id: Class that the model called them.
            part: As in `of_run`.
            limit: Most wafers to return.

        Raises:
            NotFoundError: There is no such training or part.
            FailedPreconditionError: It has not succeeded, or its model is not loaded (reason MODEL_NOT_LOADED).
            UnavailableError: The predictor cannot be reached.
        """
        raise NotImplementedError
