"""Runs one attempt of a training job: `python -m services.trainer.worker --run-folder FOLDER --attempt N`."""

from __future__ import annotations

from typing import Any

from services.common.jobs.worker import JobContext, run_worker
from services.common.settings import load_settings
from services.trainer.backbones import BackboneLibrary
from services.trainer.settings import TrainerSettings
from services.trainer.teaching import run


def work(context: JobContext) -> dict[str, Any]:
    """Teaches a model and returns what came of it; see `services.trainer.teaching.run`."""
    settings = load_settings(TrainerSettings)
    library = BackboneLibrary(mobilenet_v2_weights=settings.trainer_mobilenet_v2_weights)
    return run(context, library).to_json()


if __name__ == "__main__":
    run_worker(work)
