"""Settings of the gateway, read from `TEACHWAFER_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings import ServiceSettings

MEBIBYTE = 1024 * 1024


class GatewaySettings(ServiceSettings):
    """Settings of the portal and of everything else in the gateway."""

    gateway_port: int = Field(default=8080, ge=0, le=65535)
    """Port of the portal; 0 lets the system choose."""

    trainer_address: str = "127.0.0.1:8021"
    """Where the trainer listens, `host:port`."""

    generator_address: str = "127.0.0.1:8011"
    """Where the generator listens, `host:port`."""

    predictor_address: str = "127.0.0.1:8001"
    """Where the predictor listens, `host:port`."""

    predictor_key: str = Field(default="", repr=False)
    """Key to show to the predictor, where it asks for one; it has to be one that manages."""

    gateway_language: Literal["en", "ko"] = "en"
    """Language of people who have not chosen one and whose browser asks for neither."""

    gateway_upload_max_bytes: int = Field(default=512 * MEBIBYTE, ge=1024, le=64 * 1024 * MEBIBYTE)
    """Largest file that people may upload, bytes."""

    gateway_upload_max_files: int = Field(default=2000, ge=1, le=100_000)
    """Most files that one upload may hold."""

    gateway_body_max_bytes: int = Field(default=4 * MEBIBYTE, ge=1024)
    """Largest body of any request that is no upload, bytes."""

    gateway_cookie_secure: bool = False
    """Whether browsers send the session cookie over HTTPS only. Switch it on wherever the portal is behind HTTPS."""

    gateway_allowed_hosts: tuple[str, ...] = ()
    """Names under which the portal may be called, as `["wafers.fab.example"]`; `["*"]` allows any. Empty: this
    machine's names when it listens on this machine only (which stops pages of other sites from reaching it by a
    name of theirs), and any name otherwise."""

    @property
    def upload_folder(self) -> Path:
        """Folder of files that are being uploaded; emptied at start."""
        return self.home / "uploads"

    @property
    def secret_file(self) -> Path:
        """File with the key that signs session cookies."""
        return self.home / "portal.secret"
