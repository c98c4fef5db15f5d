import stat

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.app import allowed_hosts, session_secret
from gateway.guards import BodyLimit, Headers
from gateway.settings import GatewaySettings


async def length(request: Request):
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
async def client():
    app = Starlette(routes=[Route("/{path:path}", length, methods=["GET", "POST"])])
    guarded = Headers(BodyLimit(app, upload_max_bytes=100, body_max_bytes=10))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://portal") as client:
        yield client


async def chunks(count):
    for _ in range(count):
        yield b"x" * 10


@pytest.mark.parametrize(("path", "limit"), [("/media/uploads/ticket", 100), ("/elsewhere", 10)])
async def test_bodies_up_to_the_limit_pass_and_larger_ones_do_not(client, path, limit):
    assert (await client.post(path, content=b"x" * limit)).text == str(limit)
    refused = await client.post(path, content=b"x" * (limit + 1))
    assert refused.status_code == 413
    assert refused.json()["reason"] == "FILE_TOO_LARGE"


@pytest.mark.parametrize(("path", "limit"), [("/media/uploads/ticket", 100), ("/elsewhere", 10)])
async def test_bodies_in_chunks_are_counted(client, path, limit):
    assert (await client.post(path, content=chunks(limit // 10))).text == str(limit)
    refused = await client.post(path, content=chunks(limit // 10 + 1))
    assert refused.status_code == 413


async def test_a_length_that_is_no_number_is_refused(client):
    refused = await client.post("/elsewhere", content=b"x", headers={"content-length": "-5"})
    assert refused.status_code == 413


async def test_answers_carry_headers_that_keep_other_sites_out(client):
    headers = (await client.get("/")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_only_names_of_this_machine_where_only_this_machine_may_call(tmp_path):
    assert allowed_hosts(GatewaySettings(home=tmp_path)) == ["127.0.0.1", "localhost", "127.0.0.1"]
    assert allowed_hosts(GatewaySettings(home=tmp_path, host="0.0.0.0")) == ["*"]
    assert allowed_hosts(GatewaySettings(home=tmp_path, gateway_allowed_hosts=("fab.example",))) == ["fab.example"]


def test_the_key_of_sessions_stays_and_is_readable_by_this_user_alone(tmp_path):
    path = tmp_path / "home" / "portal.secret"
    key = session_secret(path)
    assert len(key) >= 48
    assert session_secret(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["portal.secret"]
