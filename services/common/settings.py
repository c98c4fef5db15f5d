"""Settings that all services share.

One frozen class a service, read from `TEACHWAFER_*` once at start and checked before a port opens. No other module
reads the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.errors import FieldViolation, InvalidArgumentError

ENVIRONMENT_PREFIX = "TEACHWAFER_"


class ServiceSettings(BaseSettings):
    """Settings of every service; each service's own class adds its fields, whose names carry the service."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    home: Path = Field(default=Path(".teachwafer"), validate_default=True)
    """Folder of every embedded file: database, store, models, job folders."""

    database_url: str = ""
    """SQLAlchemy URL. Empty: a SQLite file in `home`."""

    store_url: str = ""
    """Where data sets and runs lie, `file:///folder` or `s3://bucket/prefix`. Empty: a folder in `home`."""

    model_repository: Path | None = None
    """Folder of published models in Triton's layout. Absent: a folder in `home`."""

    host: str = "127.0.0.1"
    """Address to listen on. Only this machine unless told otherwise."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log lines to write."""

    log_format: Literal["json", "text"] = "json"
    """JSON lines for machines, or text for people."""

    drain_seconds: float = Field(default=20.0, ge=0, le=3600)
    """Longest wait for running calls between SIGTERM and the end, seconds."""

    job_backend: Literal["local", "kubernetes"] = "local"
    """Where jobs run: child processes here, or Kubernetes Jobs."""

    port_file_dir: Path | None = None
    """Folder into which each service writes `<service>.port` once it listens. Absent: none is written."""

    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, le=2**31 - 1)
    """Largest message received or sent, bytes."""

    max_concurrent_rpcs: int | None = Field(default=None, ge=1)
    """Calls served at a time; further ones get RESOURCE_EXHAUSTED. Absent: no limit."""

    max_connection_age_seconds: float = Field(default=60.0, gt=0)
    """Age at which connections are closed gently, so that clients find new replicas, seconds."""

    default_deadline_seconds: float = Field(default=300.0, gt=0)
    """Time that a unary call gets whose caller set no deadline, seconds."""

    tls_certificate: Path | None = None
    """PEM file with the certificate chain. With tls_key, calls are encrypted."""

    tls_key: Path | None = None
    """PEM file with the certificate's private key."""

    tls_ca: Path | None = None
    """PEM file with the authorities to trust. On servers: callers must show a certificate of theirs."""

    @field_validator("home", "model_repository", "port_file_dir", "tls_certificate", "tls_key", "tls_ca")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Makes paths absolute once, so that a later change of folder moves nothing."""
        return None if value is None else value.expanduser().absolute()

    @property
    def resolved_database_url(self) -> str:
        """SQLAlchemy URL in use."""
        return self.database_url or f"sqlite:///{self.home / 'teachwafer.db'}"

    @property
    def resolved_store_url(self) -> str:
        """Store URL in use."""
        return self.store_url or (self.home / "store").as_uri()

    @property
    def resolved_model_repository(self) -> Path:
        """Model repository in use."""
        return self.model_repository or self.home / "models"


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load_settings(settings_class: type[SettingsT], **overrides: object) -> SettingsT:
    """Reads settings from the environment.

    Args:
        settings_class: Class to fill.
        **overrides: Fields that take precedence over the environment.

    Raises:
        InvalidArgumentError: A value is out of range; names the environment variable, not the field.
    """
    try:
        return settings_class(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        violations = [
            FieldViolation(
                ENVIRONMENT_PREFIX + "_".join(str(part) for part in problem["loc"]).upper(),
                f"{problem['msg']}. Received: {problem['input']!r}.",
            )
            for problem in error.errors()
        ]
        text = "; ".join(f"{each.field}: {each.description}" for each in violations)
        raise InvalidArgumentError(
            f"Settings are wrong. {text}", violations=violations, reason="BAD_SETTINGS"
        ) from None
