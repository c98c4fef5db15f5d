"""The open catalogue."""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Connection

from services.common.database import Database, migrate, open_database

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "alembic_version_catalogue"


class Catalogue:
    """The database of the gateway. Its methods, and all functions of this package that take a connection, block.

    Args:
        database: An open database with the newest tables; see `open`.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str) -> Self:
        """Opens the catalogue and brings its tables to the newest form.

        Args:
            url: As for `services.common.database.open_database`.

        Raises:
            UnavailableError: The database cannot be reached.
        """
        database = open_database(url)
        migrate(database, MIGRATIONS, VERSION_TABLE)
        return cls(database)

    def read(self) -> AbstractContextManager[Connection]:
        """Begins a transaction that only reads."""
        return self.database.read()

    def write(self) -> AbstractContextManager[Connection]:
        """Begins a transaction that may write: all of it, or nothing."""
        return self.database.write()

    def close(self) -> None:
        """Closes all connections."""
        self.database.close()


def new_id() -> str:
    """Returns an identifier that nothing else has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def now() -> datetime:
    """Returns the present time, UTC."""
    return datetime.now(UTC)
