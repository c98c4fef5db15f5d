"""What publishers in processes of their own do; apart from the tests, so that a process starts quickly."""

from multiprocessing.queues import Queue
from pathlib import Path

from services.common.model_manifest import ModelManifest
from services.common.model_repository import ModelRepository


def publish_often(root: str, source: str, manifest: str, count: int, numbers: "Queue[int]") -> None:
    """Publish `count` versions of the model `wafers` and hand over their numbers."""
    repository = ModelRepository(Path(root))
    for _ in range(count):
        files = {"model.onnx": Path(source)}
        numbers.put(repository.publish("wafers", files, ModelManifest.from_json(manifest), "config"))
