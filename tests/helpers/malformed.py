"""Requests that no server should choke on, and which answers to them are right."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from inference import grpc_service_pb2 as kserve
from teachwafer.predictor.v1 import predictor_pb2 as pb
from teachwafer.type import wafer_map_pb2

OK, INVALID, MISSING, FULL = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
INFER = "/inference.GRPCInferenceService/ModelInfer"
CLASSIFY = "/teachwafer.predictor.v1.PredictorService/Classify"
STREAMS = {
    INFER: "/inference.GRPCInferenceService/ModelStreamInfer",
    CLASSIFY: "/teachwafer.predictor.v1.PredictorService/StreamClassify",
}
MAX_MESSAGE_BYTES = 1 << 20
"""Largest message that the server of the test takes."""

DATATYPES = (
    "BOOL",
    "UINT8",
    "INT8",
    "UINT16",
    "INT64",
    "FP16",
    "FP64",
    "BYTES",
    "BF16",
    "fp32",
    "FP33",
    "",
    "\0",
    "가",
)
HUGE = (0, -1, -(2**63), 2**31, 2**32 + 1, 2**62, 2**63 - 1)


@dataclass(frozen=True)
class Malformed:
    """A request and its right answers.

    Attributes:
        kind: What is wrong with it.
        method: Method that it goes to.
        data: Its bytes.
        right: Statuses that are right.
        wafers: Whether each wafer of an OK answer has to carry INVALID_ARGUMENT.
    """

    kind: str
    method: str
    data: bytes
    right: tuple[grpc.StatusCode, ...] = (INVALID,)
    wafers: bool = False


def good_infer(values: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> kserve.ModelInferRequest:
    """Returns a request to the model `plus`, which adds 1."""
    return kserve.ModelInferRequest(
        model_name="plus",
        inputs=[kserve.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])],
        raw_input_contents=[struct.pack("<3f", *values)],
    )


def good_classify() -> pb.ClassifyRequest:
    """Returns a request with a wafer of the class `low` to the model `tiny`."""
    return pb.ClassifyRequest(model="tiny", wafers=[wafer_map_pb2.WaferMap(rows=6, columns=8, dies=b"\1" * 48)])


def malformed(number: int) -> Malformed:
    """Returns one of any number of malformed requests, the same one for the same number."""
    chance = random.Random(number)
    kinds = list(_KINDS)
    return _KINDS[kinds[number % len(kinds)]](kinds[number % len(kinds)], chance)


def _changed(
    change: Callable[[Any, random.Random], None], *right: grpc.StatusCode
) -> Callable[[str, random.Random], Malformed]:
    """Returns what makes a good inference request bad by a change."""

    def make(kind: str, chance: random.Random) -> Malformed:
        message = good_infer()
        change(message, chance)
        return Malformed(kind, INFER, message.SerializeToString(), right or (INVALID,))

    return make


def _changed_wafer(change: Callable[[Any, random.Random], None]) -> Callable[[str, random.Random], Malformed]:
    """Returns what makes the wafer of a good request bad by a change; the call answers, the wafer does not."""

    def make(kind: str, chance: random.Random) -> Malformed:
        message = good_classify()
        change(message.wafers[0], chance)
        return Malformed(kind, CLASSIFY, message.SerializeToString(), (OK,), wafers=True)

    return make


def _changed_classify(
    change: Callable[[Any, random.Random], None], *right: grpc.StatusCode
) -> Callable[[str, random.Random], Malformed]:
    def make(kind: str, chance: random.Random) -> Malformed:
        message = good_classify()
        change(message, chance)
        return Malformed(kind, CLASSIFY, message.SerializeToString(), right or (INVALID,))

    return make


def _fuzzed(kind: str, chance: random.Random) -> Malformed:
    """Flips, drops, repeats or adds bytes; what comes out may be no message, or another one that is fine."""
    method, message = chance.choice([(INFER, good_infer()), (CLASSIFY, good_classify())])
    data = bytearray(message.SerializeToString())
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                del data[place:]
                data.append(chance.randrange(256))
            case 2:
                data[place:place] = data[place : place + chance.randint(1, 20)]
            case _:
                data[place:place] = chance.randbytes(chance.randint(1, 8))
    return Malformed(kind, method, bytes(data), (OK, INVALID, MISSING))


def _noise(kind: str, chance: random.Random) -> Malformed:
    # Never a message: a field number of 0 is not allowed.
    method = chance.choice([INFER, CLASSIFY])
    return Malformed(kind, method, b"\x02" + chance.randbytes(chance.randint(1, 4000)))


def _too_large(kind: str, chance: random.Random) -> Malformed:
    return Malformed(kind, INFER, bytes(MAX_MESSAGE_BYTES + chance.randint(1, 1000)), (FULL,))


def _strings(kind: str, chance: random.Random) -> Malformed:
    """Lengths of strings that run past the end, or end too soon."""
    message = good_infer()
    message.model_name, message.inputs[0].datatype = "same", "BYTES"
    message.inputs[0].shape[:] = [1, 2]
    raw = struct.pack("<I", chance.choice([2**32 - 1, 2**31, 100, 9])) + chance.randbytes(8)
    message.raw_input_contents[:] = [chance.choice([raw, raw[:3], b"", struct.pack("<II", 0, 0) + b"\0"])]
    return Malformed(kind, INFER, message.SerializeToString())


def _shape(message: Any, chance: random.Random) -> None:
    message.inputs[0].shape[:] = chance.choice(
        [
            [chance.choice(HUGE), 3],
            [1, chance.choice(HUGE)],
            [chance.choice(HUGE)] * chance.randint(1, 8),
            [3],
            [],
            [1, 1, 3],
            [1] * 1000,
            [2, 3],
            [2**31, 2**31],
        ]
    )


def _raw(message: Any, chance: random.Random) -> None:
    raw = message.raw_input_contents[0]
    message.raw_input_contents[:] = chance.choice([[raw[: chance.randrange(12)]], [raw + b"\0"], [raw] * 2, [], [b""]])


def _typed(message: Any, chance: random.Random) -> None:
    contents = message.inputs[0].contents
    field = chance.choice(["bool_contents", "int_contents", "uint64_contents", "fp64_contents", "fp32_contents"])
    if chance.random() < 0.5:
        del message.raw_input_contents[:]
    # Three of them in the right field would be right.
    getattr(contents, field).extend([1] * chance.choice([1, 2, 4, 4096]))


def _outputs(message: Any, chance: random.Random) -> None:
    output = message.outputs.add(name=chance.choice(["y", "z", "", "y" * 10_000]))
    if output.name == "y":
        match chance.randrange(3):
            case 0:
                message.outputs.add(name="y")
            case 1:
                output.parameters["classification"].int64_param = chance.choice([0, -1, -(2**63)])
            case _:
                output.parameters["classification"].string_param = "many"


def _parameters(message: Any, chance: random.Random) -> None:
    name = chance.choice(["triton_x", "sequence_id", "priority", "timeout"])
    message.parameters[name].CopyFrom(
        chance.choice(
            [
                kserve.InferParameter(int64_param=-1),
                kserve.InferParameter(string_param="x" * 1000),
                kserve.InferParameter(double_param=float("nan")),
                kserve.InferParameter(),
            ]
        )
    )


def _region(message: Any, chance: random.Random) -> None:
    del message.raw_input_contents[:]
    message.inputs[0].parameters["shared_memory_region"].string_param = chance.choice(["nothing", "", "../../x"])
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = chance.choice([12, 2**62])


def _numbers(message: Any, chance: random.Random) -> None:
    """Numbers that are none: passed on to the graph, as the protocol does not forbid them."""
    values = [chance.choice([float("nan"), float("inf"), float("-inf"), 3e38]) for _ in range(3)]
    message.raw_input_contents[:] = [struct.pack("<3f", *values)]


def _dies(wafer: Any, chance: random.Random) -> None:
    wafer.dies = chance.choice([b"", wafer.dies[1:], wafer.dies + b"\1", bytes(48), b"\3" * 48, chance.randbytes(48)])


def _sides(wafer: Any, chance: random.Random) -> None:
    side = chance.choice([0, -1, 2**31 - 1, -(2**31), 1025, 7])
    setattr(wafer, chance.choice(["rows", "columns"]), side)


_KINDS: dict[str, Callable[[str, random.Random], Malformed]] = {
    "fuzzed": _fuzzed,
    "noise": _noise,
    "too large": _too_large,
    "strings": _strings,
    "shape": _changed(_shape),
    "raw contents": _changed(_raw),
    "typed contents": _changed(_typed),
    "outputs": _changed(_outputs),
    "parameters": _changed(_parameters),
    "shared memory": _changed(_region, MISSING, INVALID),
    "numbers that are none": _changed(_numbers, OK),
    "data type": _changed(lambda message, chance: setattr(message.inputs[0], "datatype", chance.choice(DATATYPES))),
    "input name": _changed(
        lambda message, chance: setattr(message.inputs[0], "name", chance.choice(["", "y", "X", "x" * 9999]))
    ),
    "inputs": _changed(lambda message, chance: message.inputs.extend([message.inputs[0]] * chance.randint(1, 500))),
    "model": _changed(
        lambda message, chance: setattr(
            message, "model_name", chance.choice(["none", "", "../plus", "plus/1", "plus\0", "x" * 100_000, "웨이퍼"])
        ),
        MISSING,
        INVALID,
    ),
    "version": _changed(
        lambda message, chance: setattr(message, "model_version", chance.choice(["9", "-1", "0", "1.0", "9" * 5000])),
        MISSING,
        INVALID,
    ),
    "dies": _changed_wafer(_dies),
    "sides": _changed_wafer(_sides),
    "bins": _changed_wafer(lambda wafer, chance: wafer.bins.extend([1] * chance.choice([1, 47, 49, 9999]))),
    "no wafers": _changed_classify(lambda message, _: message.ClearField("wafers")),
    "too many wafers": _changed_classify(lambda message, _: message.wafers.extend([message.wafers[0]] * 1024)),
    "top k": _changed_classify(lambda message, chance: setattr(message, "top_k", -chance.randint(1, 2**31))),
    "model of Classify": _changed_classify(
        lambda message, chance: setattr(message, "model", chance.choice(["none", "plus", "../tiny", "x" * 5000])),
        MISSING,
        INVALID,
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
}


def is_right(request: Malformed, code: grpc.StatusCode, response: bytes) -> bool:
    """Returns whether an answer is right."""
    if code not in request.right:
        return False
    if not request.wafers:
        return True
    answers = pb.ClassifyResponse.FromString(response).answers
    return all(each.status.code == INVALID.value[0] for each in answers) and len(answers) == 1


def right_answer() -> np.ndarray:
    """Returns what `good_infer` is answered."""
    return np.array([2, 3, 4], np.float32)
