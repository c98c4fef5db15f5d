"""Generates the Python modules of protos/ into gen/. Run by every build and by `make protos`."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def generate(root: Path = ROOT) -> None:
    """Writes one package for each folder of protos/ into gen/, with type stubs.

    Raises:
        SystemExit: protoc refused a file; its own message is on standard error.
    """
    # A folder of its own until all is there: two builds at once must not mix, and none may leave half a package.
    target, fresh = root / "gen", root / f"gen.new.{os.getpid()}"
    fresh.mkdir()
    outputs = [f"--python_out={fresh}", f"--grpc_python_out={fresh}"]
    mypy_plugin = shutil.which("protoc-gen-mypy", path=f"{Path(sys.executable).parent}")
    if mypy_plugin:
        outputs += [f"--plugin=protoc-gen-mypy={mypy_plugin}", f"--mypy_out=quiet:{fresh}"]
    else:
        outputs += [f"--pyi_out={fresh}"]
    run_protoc(root, *outputs)
    for folder in {path.parent for path in fresh.rglob("*.py")}:
        for package in (folder, *folder.parents):
            if package == fresh:
                break
            (package / "__init__.py").touch()
            (package / "py.typed").touch()
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)


def run_protoc(root: Path, *options: str) -> None:
    """Runs protoc over every file of protos/.

    Raises:
        SystemExit: protoc refused a file; its own message is on standard error.
    """
    from grpc_tools import protoc

    proto_files = find_spec("google.api.field_behavior_pb2")
    if proto_files is None or proto_files.origin is None:
        raise SystemExit("Generating needs googleapis-common-protos. Install it: pip install googleapis-common-protos")
    # google/api and google/rpc come from googleapis-common-protos, google/protobuf from grpcio-tools.
    includes = [root / "protos", Path(proto_files.origin).parents[2], Path(protoc.__file__).parent / "_proto"]
    protos = sorted(str(path.relative_to(includes[0])) for path in includes[0].rglob("*.proto"))
    if code := protoc.main(["protoc", *(f"-I{path}" for path in includes), *options, *protos]):
        raise SystemExit(f"protoc ended with code {code}")


class GenerateProtos(BuildHookInterface):
    """Build hook: generate before anything is packed or linked."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates; `version` and `build_data` are part of the hook's interface and not used."""
        generate(Path(self.root))


if __name__ == "__main__":
    # `--image FILE` writes the descriptors for `buf lint` and `buf breaking` instead.
    if sys.argv[1:2] == ["--image"]:
        run_protoc(ROOT, "--include_imports", "--include_source_info", f"--descriptor_set_out={sys.argv[2]}")
    else:
        generate()
