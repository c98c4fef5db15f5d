"""Several predictors behind one address: what the gateway has loaded or unloaded, all of them do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.clients import PredictorClient
from services.common.client import connect, replicas_of
from services.common.errors import NotFoundError, UnavailableError
from tests.contract.predictor.conftest import Serve, Server
from tests.helpers.onnx_models import add_plus

NOBODY = "127.0.0.1:9"
"""An address where nothing listens."""


@pytest.fixture
async def pair(serve: Serve, tmp_path: Path) -> AsyncIterator[tuple[Server, Server]]:
    """Two predictors of one repository, to which a model was added after they had started."""
    async with serve() as one, serve() as other:
        add_plus(tmp_path / "models", "plus")
        yield one, other


def loaded_by(servers: tuple[Server, ...]) -> list[bool]:
    return [any(each.name == "plus" for each in server.models.loaded()) for server in servers]


async def test_all_replicas_load_and_unload(pair: tuple[Server, Server]) -> None:
    address = f"ipv4:{pair[0].address},{pair[1].address}"
    async with connect(address) as channel:
        client = PredictorClient(channel, address)
        await client.load("plus")
        assert loaded_by(pair) == [True, True]
        await client.unload("plus")
        assert loaded_by(pair) == [False, False]


async def test_a_replica_that_is_gone_holds_up_nobody(pair: tuple[Server, Server]) -> None:
    address = f"ipv4:{pair[0].address},{NOBODY},{pair[1].address}"
    async with connect(address) as channel:
        client = PredictorClient(channel, address)
        await client.load("plus")
        assert loaded_by(pair) == [True, True]
        with pytest.raises(NotFoundError, match="missing"):
            await client.load("missing")


async def test_without_any_replica_it_says_so() -> None:
    address = f"ipv4:{NOBODY},127.0.0.1:7"
    async with connect(address) as channel:
        with pytest.raises(UnavailableError):
            await PredictorClient(channel, address).load("plus")


async def test_replicas_are_found_by_name_or_list() -> None:
    assert await replicas_of("127.0.0.1:8001") == ["127.0.0.1:8001"]
    assert await replicas_of("dns:///127.0.0.1:8001") == ["127.0.0.1:8001"]
    assert await replicas_of("[::1]:8001") == ["[::1]:8001"]
    assert "127.0.0.1:8001" in await replicas_of("dns:///localhost:8001")
    assert await replicas_of("ipv4:10.0.0.1:1,10.0.0.2:1") == ["10.0.0.1:1", "10.0.0.2:1"]
    assert await replicas_of("unix:/run/predictor.sock") == ["unix:/run/predictor.sock"]
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid"):
        await replicas_of("dns:///nowhere.invalid:8001")
