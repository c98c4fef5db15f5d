"""Tables of the catalogue. Their history lies in gateway/catalogue/migrations."""

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
    Text,
    text,
)

from services.common.database import JsonText, UtcDateTime

METADATA = MetaData()
# SQLite counts up only columns of exactly this type.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
_LIVE = text("deleted_change IS NULL")


def _project() -> Column[str]:
    return Column("project_id", String(32), ForeignKey("projects.id", ondelete="CASCADE"), nullable=False)


# version: grows with each change of the row; data_version: grows with each change of what would be taught.
PROJECTS = Table(
    "projects",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("task", String(16), nullable=False),
    Column("product", String(256), nullable=False),
    Column("sample", Boolean, nullable=False),
    Column("model_id", String(128), nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    Column("data_version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
)

# Everything that people can take back. undo: what taking it back needs beside the marks on classes and wafers.
CHANGES = Table(
    "changes",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    _project(),
    Column("kind", String(32), nullable=False),
    Column("params", JsonText, nullable=False),
    Column("undo", JsonText, nullable=False),
    Column("person", String(256), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("undone", Boolean, nullable=False),
    Index("changes_by_project", "project_id", "number"),
    sqlite_autoincrement=True,
)

# name_key: the name as names are compared; deleted_change: number of the change that deleted the class.
CLASSES = Table(
    "classes",
    METADATA,
    Column("id", String(32), primary_key=True),
    _project(),
    Column("name", String(256), nullable=False),
    Column("name_key", String(512), nullable=False),
    Column("colour", String(7), nullable=False),
    Column("pattern", String(32), nullable=False),
    Column("position", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_change", BigInteger),
    Index(
        "classes_name",
        "project_id",
        "name_key",
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    ),
)

# number: order of arrival, the key of pages. dies, bins: zlib-compressed uint8 and little-endian int32, row-major.
# base_dataset: for generated wafers the data set version whose training wafers they were made from.
# source_sha256: content address of the original file in the store. added_change, deleted_change: numbers of changes.
WAFERS = Table(
    "wafers",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    _project(),
    Column("class_id", String(32), ForeignKey("classes.id", ondelete="CASCADE"), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("dies", LargeBinary, nullable=False),
    Column("bins", LargeBinary),
    Column("die_count", Integer, nullable=False),
    Column("fail_count", Integer, nullable=False),
    Column("lot", String(256), nullable=False),
    Column("wafer", String(256), nullable=False),
    Column("slot", Integer, nullable=False),
    Column("product", String(256), nullable=False),
    Column("step", String(256), nullable=False),
    Column("tool", String(256), nullable=False),
    Column("measured_at", UtcDateTime),
    Column("notch", Integer, nullable=False),
    Column("die_pitch_x_mm", Float(53), nullable=False),
    Column("die_pitch_y_mm", Float(53), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("generated", Boolean, nullable=False),
    Column("parent_id", String(64), nullable=False),
    Column("base_dataset", String(64), nullable=False),
    Column("source_name", String(512), nullable=False),
    Column("source_sha256", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("added_change", BigInteger, nullable=False),
    Column("deleted_change", BigInteger),
    # The counts of all cards of a project come from this index alone.
    Index(
        "wafers_of_card",
        "project_id",
        "class_id",
        "generated",
        "lot",
        "number",
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    ),
    Index("wafers_of_class", "class_id", "number", sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("wafers_of_project", "project_id", "number", sqlite_where=_LIVE, postgresql_where=_LIVE),
    Index("wafers_by_content", "project_id", "sha256"),
    Index("wafers_by_original", "source_sha256"),
    Index("wafers_by_change", "added_change"),
    Index("wafers_by_deletion", "deleted_change"),
    sqlite_autoincrement=True,
)

# Classes that a wafer shows beside its own. generated, lot: those of the wafer, which never change; so that the counts
# of all cards come from an index alone.
FURTHER = Table(
    "further_classes",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _project(),
    Column("wafer_number", _NUMBER, ForeignKey("wafers.number", ondelete="CASCADE"), nullable=False),
    Column("class_id", String(32), ForeignKey("classes.id", ondelete="CASCADE"), nullable=False),
    Column("generated", Boolean, nullable=False),
    Column("lot", String(256), nullable=False),
    Column("added_change", BigInteger, nullable=False),
    Column("deleted_change", BigInteger),
    Index(
        "further_of_card",
        "project_id",
        "class_id",
        "generated",
        "lot",
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    ),
    Index(
        "further_of_class",
        "class_id",
        "wafer_number",
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    ),
    Index("further_of_wafer", "wafer_number"),
    Index("further_by_change", "added_change"),
    Index("further_by_deletion", "deleted_change"),
    sqlite_autoincrement=True,
)

# Class that a wafer was in before a change moved it.
MOVES = Table(
    "change_moves",
    METADATA,
    Column("change_number", BigInteger, primary_key=True, autoincrement=False),
    Column("wafer_number", BigInteger, primary_key=True, autoincrement=False),
    Column("from_class", String(32), nullable=False),
)

# Uploads that were added; an upload is added once.
IMPORTS = Table(
    "imports",
    METADATA,
    Column("id", String(32), primary_key=True),
    _project(),
    Column("change_id", String(32), nullable=False),
    Column("result", JsonText, nullable=False),
    Column("person", String(256), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# fingerprint: hash of everything that was frozen, so that the same wafers are frozen once.
# info: the FrozenDataset. training_lots: keys of lots that teach.
DATASETS = Table(
    "datasets",
    METADATA,
    Column("id", String(64), primary_key=True),
    _project(),
    Column("fingerprint", String(64), nullable=False),
    Column("data_version", Integer, nullable=False),
    Column("info", JsonText, nullable=False),
    Column("training_lots", JsonText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("datasets_by_fingerprint", "project_id", "fingerprint", unique=True),
)

# spec: what was asked for. seen: the run as the service last told it. settled: the gateway has nothing left to do.
RUNS = Table(
    "runs",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    _project(),
    Column("dataset_id", String(64), nullable=False),
    Column("data_version", Integer, nullable=False),
    Column("request_id", String(64), unique=True),
    Column("spec", JsonText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("seen", JsonText, nullable=False),
    Column("settled", Boolean, nullable=False),
    Column("problem", JsonText),
    Column("accepted_change", String(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("runs_by_project", "project_id", "kind", "number"),
    sqlite_autoincrement=True,
)

MODEL_VERSIONS = Table(
    "model_versions",
    METADATA,
    Column("model_id", String(128), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("project_id", String(32), nullable=False),
    Column("run_id", String(128), nullable=False, unique=True),
    Column("score", Float(53)),
    Column("published_at", UtcDateTime, nullable=False),
    # The same of the training's quantised variant, when that was published too.
    Column("quantised_version", BigInteger),
    Column("quantised_score", Float(53)),
    Column("quantised_at", UtcDateTime),
)

PREFERENCES = Table(
    "preferences",
    METADATA,
    Column("person", String(256), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(1024), nullable=False),
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("text", Text, nullable=False),
    Column("page", String(256), nullable=False),
    Column("person", String(256), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    sqlite_autoincrement=True,
)

# Rows are only ever added; triggers refuse everything else.
AUDIT = Table(
    "audit",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("person", String(256), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("params", JsonText, nullable=False),
    Index("audit_by_subject", "subject", "number"),
    sqlite_autoincrement=True,
)
