"""Tables of the job store. Their history lies in services/common/database/migrations."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from services.common.database.types import JsonText, UtcDateTime

METADATA = MetaData()
# SQLite counts up only columns of exactly this type.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")

# number: order of creation; never used again, so that a page token stays true after a deletion.
# not_before, lease_until: seconds since 1970 by the database's clock, because replicas' clocks may differ.
# owner: the engine that looks after the job while it is STARTING or RUNNING; empty when nobody does.
JOBS = Table(
    "jobs",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("request_id", String(64)),
    Column("spec", JsonText, nullable=False),
    Column("spec_sha256", String(64), nullable=False),
    Column("display_name", String(256), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("not_before", Float(53), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", Float(53), nullable=False),
    Column("device", String(256), nullable=False),
    Column("result", JsonText),
    Column("error", LargeBinary),
    Column("last_sequence", BigInteger, nullable=False),
    Column("owner", String(256), nullable=False),
    Column("lease_until", Float(53), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    UniqueConstraint("kind", "request_id", name="jobs_request_id"),
    Index("jobs_by_state", "kind", "state", "number"),
    sqlite_autoincrement=True,
)

# events_offset: bytes of the attempt's events file that are in job_events already; written in the same transaction.
JOB_ATTEMPTS = Table(
    "job_attempts",
    METADATA,
    Column("job_number", _NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("handle", JsonText),
    Column("events_offset", BigInteger, nullable=False),
    Column("exit_code", Integer),
    Column("reason", String(16), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
)

JOB_EVENTS = Table(
    "job_events",
    METADATA,
    Column("job_number", _NUMBER, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("data", JsonText, nullable=False),
)
