"""Opening a database, and its two kinds of transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.engine import URL, make_url

from services.common.errors import ResourceExhaustedError, UnavailableError

BUSY_TIMEOUT_S = 30
"""How long a writer waits for SQLite's one write lock, seconds."""
_READ_ONLY = "teachwafer_read_only"


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. Its methods block: call them from a thread (`asyncio.to_thread`), never from the event loop.

    Attributes:
        engine: SQLAlchemy's engine. A transaction begun on it directly may write.
    """

    engine: Engine

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite; otherwise it is PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Begins a transaction that may write; commits at the end of the block, rolls back when it raises.

        On SQLite it takes the write lock at once (BEGIN IMMEDIATE), so that what is read inside stays true until the
        commit. On PostgreSQL lock rows with `with_for_update` for the same.

        Raises:
            UnavailableError: If the database cannot be reached or stays locked.
            ResourceExhaustedError: If the disk is full.
        """
        with _translated_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Begins a transaction that only reads; on SQLite it never waits for a writer.

        Raises:
            UnavailableError: If the database cannot be reached.
        """
        with _translated_errors(), self.engine.connect() as connection:
            connection = connection.execution_options(**{_READ_ONLY: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Opens a database; a SQLite file and its folder are made when they are not there.

    Args:
        url: `sqlite:///path/to/file.db` or `postgresql://user:password@host/name`.

    Raises:
        ValueError: If the URL names another kind of database.
        UnavailableError: If the SQLite file cannot be opened.
    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _open_sqlite(parsed)
    if backend in ("postgresql", "postgres"):
        return Database(sqlalchemy.create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True))
    raise ValueError(
        f"Expected a database URL that begins with sqlite:/// or postgresql://. Received: {backend}. "
        "Set TEACHWAFER_DATABASE_URL to one of these, or leave it empty for a SQLite file."
    )


def _open_sqlite(url: URL) -> Database:
    if not url.database or url.database == ":memory:":
        raise ValueError("Expected a SQLite file. Received: a database in memory, which a second process cannot see.")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return Database(engine)


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # Python's driver begins transactions on its own, and not before reads; without this SQLAlchemy could not say how
    # each one begins.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        _switch_to_wal(connection)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Turns on the write-ahead log; several processes may do so at once.

    SQLite does not wait for the lock here when it would have to upgrade one, so that the wait is made by taking the
    write lock first and trying again.
    """
    for _ in range(100):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turns "cannot be reached" and "disk full" into errors that a client understands; all others pass."""
    try:
        yield
    except exc.TimeoutError as error:
        raise _unavailable() from error
    except exc.OperationalError as error:
        origin = error.orig
        if isinstance(origin, sqlite3.OperationalError) and origin.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise ResourceExhaustedError(
                "The disk that holds the database is full. Free some space and try again.", reason="DISK_FULL"
            ) from error
        raise _unavailable() from error
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise _unavailable() from error
        raise


def _unavailable() -> UnavailableError:
    return UnavailableError(
        "The database cannot be reached now. Try again; if it stays so, check TEACHWAFER_DATABASE_URL and its server.",
        reason="DATABASE_UNAVAILABLE",
        retry_after_s=2,
    )
