"""The dashboard shows metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from inference import grpc_service_pb2 as kserve
from prometheus_client import CollectorRegistry

from services.predictor.access import Access
from services.predictor.metrics import ModelCollector
from tests.contract.predictor.conftest import Serve
from tests.contract.predictor.test_access import KEY, keys_file
from tests.contract.predictor.test_canary import CONFIG, versions_of
from tests.contract.predictor.test_kserve import request
from tests.helpers.onnx_models import add_plus

DASHBOARD = json.loads((Path(__file__).parents[3] / "deploy" / "grafana" / "predictor.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
NAME = re.compile(r"\b(?:nv|teachwafer)_\w+")


def test_every_panel_asks_for_a_metric() -> None:
    assert len(EXPRESSIONS) > 12
    assert all(NAME.search(each) for each in EXPRESSIONS)


async def test_every_metric_that_it_names_exists_with_its_labels(serve: Serve, tmp_path: Path) -> None:
    """All samples are there while a version proves itself and another has done so, with keys in use."""
    access = Access(keys_file(tmp_path, models=["plus", "other"], manages=True))
    add_plus(tmp_path / "models", "plus", config=CONFIG)
    add_plus(tmp_path / "models", "other", config=CONFIG)
    add_plus(tmp_path / "models", "other", version=2)
    async with serve(access=access, key=KEY) as server:
        add_plus(tmp_path / "models", "plus", version=2)
        await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))
        await versions_of(server, 100)
        await server.kserve.ModelInfer(request(np.zeros((1, 3), np.float32), model="other"))
        registry = CollectorRegistry()
        registry.register(ModelCollector(server.models, access))
        labels: dict[str, set[str]] = {}
        for metric in registry.collect():
            for sample in metric.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    for expression in EXPRESSIONS:
        for name in NAME.findall(expression):
            assert name in labels, f"{name} of {expression}"
            if "{model=~" in expression:
                assert "model" in labels[name]
            if grouped := re.search(r"sum by \(([\w, ]+)\)", expression):
                assert set(grouped[1].split(", ")) <= labels[name], expression
