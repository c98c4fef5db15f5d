"""A studio over a database of its own, with services that answer from a script."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from gateway.studio import Studio
from tests.unit.studio.fake_services import FakeServices


@pytest.fixture
async def services() -> AsyncIterator[FakeServices]:
    fake = FakeServices()
    await fake.start()
    yield fake
    await fake.stop()
    fake.assert_all_used()


@pytest.fixture
def settings(home: Path, services: FakeServices) -> GatewaySettings:
    return GatewaySettings(
        trainer_address=services.address,
        generator_address=services.address,
        predictor_address=services.address,
        gateway_upload_max_bytes=1 << 20,
        gateway_upload_max_files=50,
    )


@pytest.fixture
async def studio(settings: GatewaySettings) -> AsyncIterator[Studio]:
    async with await Studio.open(settings, background=False) as opened:
        yield opened
