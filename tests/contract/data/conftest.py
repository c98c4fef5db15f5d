"""Stores of both kinds: a local folder and a real S3 server."""

import contextlib
import os
import signal
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.errors import TeachwaferError
from services.common.store import BlobStore, open_store

_ATTEMPTS = 3
_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "webdav.port",
    "admin.port",
    "admin.port.grpc",
)


@dataclass(frozen=True)
class S3Server:
    """A running S3 server.

    Attributes:
        options: what a store needs to reach it.
        bucket: bucket that exists.
    """

    options: dict[str, str]
    bucket: str

    def open(self, prefix: str = "") -> BlobStore:
        return open_store(f"s3://{self.bucket}/{prefix}", self.options)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS, started once for all tests; its ports are chosen anew if another process was quicker."""
    for _ in range(_ATTEMPTS):
        folder = tmp_path_factory.mktemp("seaweedfs")
        with _seaweedfs(folder) as server:
            if server is not None:
                yield server
                return
    log = (folder / "log.txt").read_text(errors="replace")[-3000:]
    pytest.fail(f"The S3 server did not start in {_ATTEMPTS} attempts:\n{log}")


@contextlib.contextmanager
def _seaweedfs(folder: Path) -> Iterator[S3Server | None]:
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    key, secret = "teachwafer", uuid.uuid4().hex
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [
                Path(sysconfig.get_path("scripts")) / "weed",
                "mini",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-bucket=wafers",
                "-master.telemetry=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                *(f"-{name}={port}" for name, port in ports.items()),
            ],
            cwd=folder,
            env={**os.environ, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "HOME": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    options = {
        "endpoint": f"http://127.0.0.1:{ports['s3.port']}",
        "region": "us-east-1",
        "access_key_id": key,
        "secret_access_key": secret,
    }
    server = S3Server(options, "wafers")
    try:
        yield server if _answers(process, server) else None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _answers(process: "subprocess.Popen[bytes]", server: S3Server, timeout_s: float = 45.0) -> bool:
    end = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < end:
        port = int(server.options["endpoint"].rpartition(":")[2])
        with contextlib.suppress(OSError, TeachwaferError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            server.open().put("ready", b"yes")
            return True
        time.sleep(0.1)
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """An empty store of each kind."""
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    server: S3Server = request.getfixturevalue("s3_server")
    return server.open(f"test-{uuid.uuid4().hex}")


@pytest.fixture
def another(request: pytest.FixtureRequest, store: BlobStore) -> BlobStore:
    """The same store, opened a second time."""
    if store.url.startswith("file:"):
        return open_store(store.url)
    server: S3Server = request.getfixturevalue("s3_server")
    return open_store(store.url, server.options)
