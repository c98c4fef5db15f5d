"""The predictor follows its repository by itself where it is told to."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from tests.helpers.eventually import assert_eventually_sync
from tests.helpers.onnx_models import add_plus
from tests.helpers.processes import service_process

POLL = {"TEACHWAFER_PREDICTOR_MODEL_CONTROL": "poll", "TEACHWAFER_PREDICTOR_POLL_SECONDS": "0.1"}


def test_a_polling_predictor_serves_what_is_added(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with service_process("services.predictor", home, POLL) as service:
        service.wait_serving()
        address = f"http://127.0.0.1:{service.port('predictor-rest')}/v2/models/plus/ready"

        def ready() -> bool:
            try:
                with urllib.request.urlopen(address) as response:
                    return bool(response.status == 200)
            except urllib.error.HTTPError:
                return False

        assert not ready()
        add_plus(home / "models", "plus")
        assert_eventually_sync(ready, timeout_s=60)
        service.terminate()
        assert service.wait() == 0
