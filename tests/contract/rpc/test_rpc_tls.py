"""Encrypted connections, with callers who must show a certificate, and files that rotate."""

import shutil

import pytest

from services.common.client import connect
from services.common.errors import InvalidArgumentError, UnavailableError
from services.common.server import GrpcServer, TlsFiles
from tests.helpers.certificates import make_certificate, needs_openssl
from tests.helpers.grpc_testing import path, serving, unary

pytestmark = needs_openssl


async def echo(request, context):
    return request


async def call(address, tls):
    async with connect(address, tls=tls, idempotent={}) as channel:
        return await channel.unary_unary(path("Do"), None, None)(b"x", timeout=5)


async def test_only_callers_with_a_trusted_certificate_get_in(tmp_path):
    server, client, stranger = (make_certificate(tmp_path, name) for name in ("server", "client", "stranger"))
    tls = TlsFiles(certificate=server.certificate, key=server.key, ca=client.certificate)
    async with serving(unary("Do", echo), tls=tls) as served:
        good = TlsFiles(certificate=client.certificate, key=client.key, ca=server.certificate)
        assert await call(served.address, good) == b"x"
        with pytest.raises(UnavailableError):
            await call(served.address, None)
        with pytest.raises(UnavailableError):
            await call(served.address, TlsFiles(stranger.certificate, stranger.key, server.certificate))


async def test_new_files_are_used_without_a_restart(tmp_path):
    old, new = make_certificate(tmp_path, "old"), make_certificate(tmp_path, "new")
    used = TlsFiles(certificate=tmp_path / "used.crt", key=tmp_path / "used.key")
    shutil.copy(old.certificate, used.certificate)
    shutil.copy(old.key, used.key)
    async with serving(unary("Do", echo), tls=used) as served:
        assert await call(served.address, TlsFiles(ca=old.certificate)) == b"x"
        shutil.copy(new.certificate, used.certificate)
        shutil.copy(new.key, used.key)
        assert await call(served.address, TlsFiles(ca=new.certificate)) == b"x"


async def test_a_missing_file_is_a_clear_error(tmp_path):
    for tls in (TlsFiles(certificate=tmp_path / "no.crt", key=tmp_path / "no.key"), TlsFiles(ca=tmp_path / "no.crt")):
        server = GrpcServer(host="127.0.0.1", port=0, service_names=(), tls=tls)
        with pytest.raises(InvalidArgumentError, match=r"Expected .*TLS"):
            await server.start()
        await server.aio.stop(0)
    with pytest.raises(InvalidArgumentError, match=r"no\.crt"):
        connect("127.0.0.1:1", tls=TlsFiles(ca=tmp_path / "no.crt"))
