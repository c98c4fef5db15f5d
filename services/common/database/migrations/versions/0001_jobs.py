"""Jobs, their attempts and their events."""

import sqlalchemy as sa
from alembic import op

from services.common.database.types import JsonText, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("request_id", sa.String(64)),
        sa.Column("spec", JsonText, nullable=False),
        sa.Column("spec_sha256", sa.String(64), nullable=False),
        sa.Column("display_name", sa.String(256), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float(53), nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("progress", sa.Float(53), nullable=False),
        sa.Column("device", sa.String(256), nullable=False),
        sa.Column("result", JsonText),
        sa.Column("error", sa.LargeBinary),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(256), nullable=False),
        sa.Column("lease_until", sa.Float(53), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("started_at", UtcDateTime),
        sa.Column("ended_at", UtcDateTime),
        sa.UniqueConstraint("kind", "request_id", name="jobs_request_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_by_state", "jobs", ["kind", "state", "number"])
    op.create_table(
        "job_attempts",
        sa.Column("job_number", _NUMBER, sa.ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("handle", JsonText),
        sa.Column("events_offset", sa.BigInteger, nullable=False),
        sa.Column("exit_code", sa.Integer),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("started_at", UtcDateTime, nullable=False),
        sa.Column("ended_at", UtcDateTime),
    )
    op.create_table(
        "job_events",
        sa.Column("job_number", _NUMBER, sa.ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", UtcDateTime, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("data", JsonText, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("job_events")
    op.drop_table("job_attempts")
    op.drop_table("jobs")
