"""Settings of the generator."""

from __future__ import annotations

from pydantic import Field

from services.common.jobs.settings import JobSettings


class GeneratorSettings(JobSettings):
    """What the generator can be told."""

    generator_port: int = Field(default=8011, ge=0, le=65535)
    """Port of the gRPC service; 0 takes a free one."""
