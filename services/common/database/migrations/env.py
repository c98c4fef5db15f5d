"""Alembic environment of the job tables."""

from services.common.database import run_migrations

run_migrations()
