"""Certificates for encrypted connections of tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from services.common.server import TlsFiles

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


def make_certificate(folder: Path, name: str) -> TlsFiles:
    """Makes a self-signed certificate of 127.0.0.1, which is its own authority."""
    files = TlsFiles(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", files.key, "-out", files.certificate], check=True, capture_output=True)
    return files
