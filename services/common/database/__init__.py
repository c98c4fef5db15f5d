"""The database: SQLite in one file here, PostgreSQL there, one code path."""

from services.common.database.engine import Database, open_database
from services.common.database.migration import migrate, run_migrations
from services.common.database.types import JsonText, UtcDateTime

__all__ = ["Database", "JsonText", "UtcDateTime", "migrate", "open_database", "run_migrations"]
