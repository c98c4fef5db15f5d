"""Bringing a database to the newest schema. Each owner of tables has a history and a version table of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from services.common.database.engine import Database

JOBS_MIGRATIONS = Path(__file__).parent / "migrations"
"""History of the job tables."""
JOBS_VERSION_TABLE = "alembic_version_jobs"
"""Version table of the job tables."""


def migrate(database: Database, script_location: Path, version_table: str) -> None:
    """Brings the tables of one owner to the newest schema. Safe when several processes start at once.

    Args:
        database: The database.
        script_location: Folder of the Alembic history; its env.py is the one call `run_migrations()`.
        version_table: Name of the owner's version table.

    Raises:
        UnavailableError: If the database cannot be reached.
        alembic.util.CommandError: If the database is newer than this program.
    """
    config = Config()
    config.set_main_option("script_location", str(script_location).replace("%", "%%"))
    config.attributes["version_table"] = version_table
    newest = set(ScriptDirectory.from_config(config).get_heads())
    with database.read() as connection:
        if _heads(connection, version_table) == newest:
            return
    with database.write() as connection:
        # SQLite's write lock is held already; on PostgreSQL the others wait here and then find nothing left to do.
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _lock_key(version_table)})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def run_migrations() -> None:
    """Body of an owner's env.py: runs the migrations on the connection that `migrate` opened.

    Raises:
        RuntimeError: If it is run otherwise, for example by the alembic command line.
    """
    attributes = context.config.attributes
    if "connection" not in attributes:
        raise RuntimeError("Expected to be run by services.common.database.migrate, which holds the lock.")
    context.configure(connection=attributes["connection"], version_table=attributes["version_table"])
    # No transaction here: migrate() began one, and its end is the end of all steps.
    context.run_migrations()


def _heads(connection: Connection, version_table: str) -> set[str]:
    return set(MigrationContext.configure(connection, opts={"version_table": version_table}).get_current_heads())


def _lock_key(version_table: str) -> int:
    return int.from_bytes(hashlib.sha256(version_table.encode()).digest()[:8], "big", signed=True)
