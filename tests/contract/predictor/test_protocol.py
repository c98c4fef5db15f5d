"""Our inference protocol is the published one, field by field. The published one is loaded in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.helpers.tritonclient_venv import tritonclient_python

DESCRIBE = """
import importlib, json, sys
from google.protobuf import descriptor_pb2

facts = {}

def walk_message(message, prefix):
    name = f"{prefix}.{message.name}"
    facts[name] = "map entry" if message.options.map_entry else "message"
    oneofs = [each.name for each in message.oneof_decl]
    for field in message.field:
        oneof = oneofs[field.oneof_index] if field.HasField("oneof_index") else ""
        facts[f"{name}.{field.name}"] = [
            field.number, field.type, field.label, field.type_name, oneof, field.proto3_optional
        ]
    for nested in message.nested_type:
        walk_message(nested, name)
    for enum in message.enum_type:
        walk_enum(enum, name)

def walk_enum(enum, prefix):
    facts[f"{prefix}.{enum.name}"] = {value.name: value.number for value in enum.value}

for module in sys.argv[1:]:
    file = descriptor_pb2.FileDescriptorProto()
    importlib.import_module(module).DESCRIPTOR.CopyToProto(file)
    facts["package"] = file.package
    for message in file.message_type:
        walk_message(message, file.package)
    for enum in file.enum_type:
        walk_enum(enum, file.package)
    for service in file.service:
        for rpc in service.method:
            facts[f"{file.package}.{service.name}/{rpc.name}"] = [
                rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming
            ]
print(json.dumps(facts))
"""


def test_same_as_published() -> None:
    ours = _facts(sys.executable, "inference.grpc_service_pb2", "inference.model_config_pb2")
    published = _facts(
        str(tritonclient_python()), "tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2"
    )
    assert len(published) > 400
    assert {name: (ours.get(name), fact) for name, fact in published.items() if ours.get(name) != fact} == {}
    assert ours.keys() - published.keys() == set()


def _facts(python: str, *modules: str) -> dict[str, object]:
    output = subprocess.run([python, "-c", DESCRIBE, *modules], check=True, capture_output=True, text=True).stdout
    facts: dict[str, object] = json.loads(output)
    return facts
