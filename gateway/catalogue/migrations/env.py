"""Alembic environment of the catalogue's tables."""

from services.common.database import run_migrations

run_migrations()
