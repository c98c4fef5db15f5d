"""Published models: rows and the words of a call."""

from __future__ import annotations

from typing import Final

from gateway.i18n import Messages
from gateway.values import ModelState, ModelVersion, QuantisedVariant, Task, TrainingResult

STATE_TONES: Final = {
    ModelState.READY: "good",
    ModelState.LOADING: "accent",
    ModelState.UNLOADED: "",
    ModelState.REJECTED: "bad",
    ModelState.UNKNOWN: "",
}


_SAID: Final = {
    Task.SINGLE: "print(answer.display_name, answer.probability)",
    Task.SEVERAL: "print([(each.display_name, each.probability) for each in answer.patterns])",
    Task.NORMAL: 'print("normal" if answer.decision == predictor_pb2.WaferAnswer.DECISION_ACCEPTED else "not normal")',
}


def variant_rows(t: Messages, result: TrainingResult, variant: QuantisedVariant) -> list[tuple[str, str, str]]:
    """Returns what the model and its quantised variant do on the same wafers: name of the figure and both values."""
    model, small = (result.test, variant.test) if result.test and variant.test else (result.tune, variant.tune)
    rows = [(t("models.size"), t.size(result.model_bytes), t.size(variant.model_bytes))]
    if model is None or small is None:
        return rows
    if model.task is Task.NORMAL:
        return [(t("evaluate.auroc"), f"{model.auroc:.3f}", f"{small.auroc:.3f}"), *rows]
    return [
        # A digit more than elsewhere: what differs would be rounded away.
        (t("evaluate.macro_f1"), f"{model.macro_f1:.3f}", f"{small.macro_f1:.3f}"),
        (t("evaluate.accepted_share"), t.percent(model.accepted_share, 1), t.percent(small.accepted_share, 1)),
        (t("evaluate.accepted_error"), t.percent(model.accepted_error, 1), t.percent(small.accepted_error, 1)),
        *rows,
    ]


def python_snippet(model_id: str, address: str, task: Task) -> str:
    """Writes a Python program that asks a model about one wafer over gRPC.

    Args:
        model_id: Name of the model.
        address: Where the predictor listens.
        task: What the model tells.
    """
    return f"""\
import grpc
import numpy as np
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from teachwafer.type import wafer_map_pb2

dies = np.load("wafer.npy")  # uint8 (rows, columns): 0 no die, 1 pass, 2 fail
wafer = wafer_map_pb2.WaferMap(rows=dies.shape[0], columns=dies.shape[1], dies=dies.tobytes())
with grpc.insecure_channel("{address}") as channel:
    predictor = predictor_pb2_grpc.PredictorServiceStub(channel)
    request = predictor_pb2.ClassifyRequest(model="{model_id}", wafers=[wafer])
    answer = predictor.Classify(request, timeout=10).answers[0]
{_SAID[task]}
"""


def service_text(t: Messages, version: ModelVersion) -> str:
    """Says what a loaded version did: wafers answered and the time of a call."""
    parts = [t("models.requests", n=version.wafers)] if version.state is ModelState.READY else []
    if version.latency_ms > 0:
        parts.append(t("models.latency", ms=f"{version.latency_ms:.1f}"))
    return " · ".join(parts)
