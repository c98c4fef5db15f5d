"""Settings of the trainer."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.jobs.settings import JobSettings


class TrainerSettings(JobSettings):
    """What the trainer can be told."""

    trainer_port: int = Field(default=8021, ge=0, le=65535)
    """Port of the gRPC service; 0 takes a free one."""
    trainer_mobilenet_v2_weights: Path | None = None
    """Weights file of Keras' MobileNetV2 without its top; makes the backbone mobilenet-v2 available."""
