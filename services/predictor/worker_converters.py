"""Between the wire and what processes of a predictor tell each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf import json_format
from google.protobuf.message import Message
from inference import grpc_service_pb2
from teachwafer.predictor.workers.v1 import workers_pb2

from services.predictor import kserve_converters
from services.predictor.canary import Outcome, Verdict
from services.predictor.log_settings import Value
from services.predictor.model_server import ServedVersions
from services.predictor.shared_memory import Region
from services.predictor.tracing import Tracer

_TRACE_SETTINGS = ("trace_level", "trace_rate", "trace_count", "log_frequency")


def state_to_proto(
    served: Sequence[ServedVersions],
    rejected: Mapping[tuple[str, int], str],
    regions: Iterable[Region],
    tracer: Tracer,
    logs: Mapping[str, Value],
) -> workers_pb2.State:
    """Returns all that another process needs to serve the same.

    Args:
        served: Models in service.
        rejected: Why versions do not serve, by model and version.
        regions: Registered regions of shared memory.
        tracer: Knows what is traced.
        logs: What is logged.
    """
    return workers_pb2.State(
        models=[_model_to_proto(each) for each in served],
        rejections=[
            workers_pb2.Rejection(name=name, version=version, reason=reason)
            for (name, version), reason in rejected.items()
        ],
        regions=[
            grpc_service_pb2.SystemSharedMemoryRegisterRequest(
                name=each.name, key=each.key, offset=each.offset, byte_size=each.byte_size
            )
            for each in regions
        ],
        traces=[_trace_to_proto(model, tracer.settings(model)) for model in ("", *tracer.models)],
        # Question and answer have the same fields.
        logs=grpc_service_pb2.LogSettingsRequest.FromString(kserve_converters.log_to_proto(logs).SerializeToString()),
    )


def served_from_proto(state: workers_pb2.State) -> list[ServedVersions]:
    """Returns the models that another process serves."""
    return [
        ServedVersions(
            each.name,
            tuple(each.versions),
            json_format.MessageToJson(each.config),
            dict(each.files),
            (each.stable, each.candidate) if each.candidate else None,
            tuple(each.kept),
        )
        for each in state.models
    ]


def rejected_from_proto(state: workers_pb2.State) -> dict[tuple[str, int], str]:
    """Returns why versions do not serve, by model and version."""
    return {(each.name, each.version): each.reason for each in state.rejections}


def verdict_to_proto(model: str, candidate: int, verdict: Verdict) -> workers_pb2.EndTrialRequest:
    """Returns how the trial of a version ends."""
    return workers_pb2.EndTrialRequest(
        model=model, candidate=candidate, promoted=verdict.outcome is Outcome.PROMOTED, reason=verdict.reason
    )


def verdict_from_proto(request: workers_pb2.EndTrialRequest) -> Verdict:
    """Returns how the trial of a version ends."""
    return Verdict(Outcome.PROMOTED if request.promoted else Outcome.ROLLED_BACK, request.reason)


def statistics_together(
    answers: Iterable[grpc_service_pb2.ModelStatisticsResponse],
) -> grpc_service_pb2.ModelStatisticsResponse:
    """Returns what several processes have done together, by model and version."""
    totals: dict[tuple[str, str], grpc_service_pb2.ModelStatistics] = {}
    for each in (each for answer in answers for each in answer.model_stats):
        total = totals.setdefault(
            (each.name, each.version), grpc_service_pb2.ModelStatistics(name=each.name, version=each.version)
        )
        total.last_inference = max(total.last_inference, each.last_inference)
        total.inference_count += each.inference_count
        total.execution_count += each.execution_count
        _add_durations(total.inference_stats, each.inference_stats)
        sizes = {batch.batch_size: batch for batch in total.batch_stats}
        for batch in each.batch_stats:
            if batch.batch_size not in sizes:
                sizes[batch.batch_size] = grpc_service_pb2.InferBatchStatistics(batch_size=batch.batch_size)
            _add_durations(sizes[batch.batch_size], batch)
        del total.batch_stats[:]
        total.batch_stats.extend(batch for _, batch in sorted(sizes.items()))
    return grpc_service_pb2.ModelStatisticsResponse(model_stats=totals.values())


def _add_durations(total: Message, more: Message) -> None:
    """Adds those fields of a message that tell how often something was done and how long it took."""
    for field, value in more.ListFields():
        if isinstance(value, grpc_service_pb2.StatisticDuration):
            into = getattr(total, field.name)
            into.count += value.count
            into.ns += value.ns


def _model_to_proto(served: ServedVersions) -> workers_pb2.Model:
    message = workers_pb2.Model(name=served.name, versions=served.versions, files=served.files, kept=served.kept)
    json_format.Parse(served.config, message.config)
    if served.trial:
        message.stable, message.candidate = served.trial
    return message


def _trace_to_proto(model: str, settings: Mapping[str, Sequence[str]]) -> grpc_service_pb2.TraceSettingRequest:
    value = grpc_service_pb2.TraceSettingRequest.SettingValue
    return grpc_service_pb2.TraceSettingRequest(
        model_name=model, settings={name: value(value=settings[name]) for name in _TRACE_SETTINGS}
    )
