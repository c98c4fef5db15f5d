"""Errors survive the way to the wire and back."""

import pytest
from google.rpc import error_details_pb2, status_pb2

from services.common import errors
from services.common.errors import (
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    TeachwaferError,
    UnavailableError,
    from_status,
    to_status,
    with_context,
)

CLASSES = list(errors._CLASSES)


def test_every_class_is_documented_with_its_code_and_a_next_step():
    for each in CLASSES:
        assert each.__doc__.startswith(each.code.name), each
        assert "Next step:" in each.__doc__, each
        assert each.__name__ in errors.__doc__, each


def test_no_two_classes_share_a_code_and_every_code_but_two_has_one():
    codes = [each.code.name for each in CLASSES]
    assert len(set(codes)) == len(codes)
    assert set(codes) == {code.name for code in errors.grpc.StatusCode} - {"OK", "UNKNOWN", "OUT_OF_RANGE"}


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda each: each.__name__)
def test_round_trip_keeps_class_message_reason_and_metadata(error_class):
    arguments = {"reason": "A_REASON", "metadata": {"key": "value"}}
    if issubclass(error_class, errors._ResourceError):
        error = error_class("model", "wafers", "No such model.", **arguments)
    else:
        error = error_class("Expected this. Received: that.", **arguments)
    again = from_status(status_pb2.Status.FromString(to_status(error).SerializeToString()))
    assert type(again) is error_class
    assert again.message == str(again) == error.message
    assert (again.reason, again.metadata) == ("A_REASON", {"key": "value"})


def test_details_come_back():
    violations = (
        FieldViolation("wafers[3].rows", "Expected 1 to 1,024. Received: 0."),
        FieldViolation("model", "Empty."),
    )
    bad = from_status(to_status(InvalidArgumentError("Wrong.", violations=violations)))
    assert isinstance(bad, InvalidArgumentError)
    assert bad.violations == violations
    assert bad.field == "wafers[3].rows"

    missing = from_status(to_status(NotFoundError("model", "wafers")))
    assert isinstance(missing, NotFoundError)
    assert (missing.resource_type, missing.name) == ("model", "wafers")
    assert "'wafers'" in missing.message

    state = from_status(to_status(FailedPreconditionError("Too few.", subject="datasetVersions/x", reason="TOO_FEW")))
    assert isinstance(state, FailedPreconditionError)
    assert (state.subject, state.reason) == ("datasetVersions/x", "TOO_FEW")

    away = from_status(to_status(UnavailableError("Draining.", 1.5)))
    assert isinstance(away, UnavailableError)
    assert away.retry_after_s == 1.5


def test_request_id_travels_as_request_info():
    status = to_status(InternalError("Fixed text."), request_id="abc")
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.request_id == "abc"
    assert from_status(status).metadata == {"request_id": "abc"}


def test_an_unknown_code_becomes_an_internal_error():
    error = from_status(status_pb2.Status(code=2, message="odd"))
    assert type(error) is InternalError
    assert error.message == "odd"


def test_context_goes_before_the_message_and_leaves_the_original_alone():
    error: TeachwaferError = NotFoundError("model", "wafers", "No such model.")
    told = with_context(error, "Could not predict")
    assert str(told) == "Could not predict: No such model."
    assert isinstance(told, NotFoundError)
    assert told.name == "wafers"
    assert str(error) == "No such model."
