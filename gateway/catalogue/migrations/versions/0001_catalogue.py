"""Projects, classes, wafers, and what was done with them."""

import sqlalchemy as sa
from alembic import op

from services.common.database import JsonText, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LIVE = sa.text("deleted_change IS NULL")


def _project() -> sa.Column[str]:
    return sa.Column("project_id", sa.String(32), sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("product", sa.String(256), nullable=False),
        sa.Column("sample", sa.Boolean, nullable=False),
        sa.Column("model_id", sa.String(128), nullable=False, unique=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("data_version", sa.Integer, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("changed_at", UtcDateTime, nullable=False),
        sa.Column("deleted_at", UtcDateTime),
    )
    op.create_table(
        "changes",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        _project(),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("params", JsonText, nullable=False),
        sa.Column("undo", JsonText, nullable=False),
        sa.Column("person", sa.String(256), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("undone", sa.Boolean, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "classes",
        sa.Column("id", sa.String(32), primary_key=True),
        _project(),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("name_key", sa.String(512), nullable=False),
        sa.Column("colour", sa.String(7), nullable=False),
        sa.Column("pattern", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("deleted_change", sa.BigInteger),
    )
    op.create_table(
        "wafers",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        _project(),
        sa.Column("class_id", sa.String(32), sa.ForeignKey("classes.id", ondelete="CASCADE"), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("columns", sa.Integer, nullable=False),
        sa.Column("dies", sa.LargeBinary, nullable=False),
        sa.Column("bins", sa.LargeBinary),
        sa.Column("die_count", sa.Integer, nullable=False),
        sa.Column("fail_count", sa.Integer, nullable=False),
        sa.Column("lot", sa.String(256), nullable=False),
        sa.Column("wafer", sa.String(256), nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("product", sa.String(256), nullable=False),
        sa.Column("step", sa.String(256), nullable=False),
        sa.Column("tool", sa.String(256), nullable=False),
        sa.Column("measured_at", UtcDateTime),
        sa.Column("notch", sa.Integer, nullable=False),
        sa.Column("die_pitch_x_mm", sa.Float(53), nullable=False),
        sa.Column("die_pitch_y_mm", sa.Float(53), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("generated", sa.Boolean, nullable=False),
        sa.Column("parent_id", sa.String(64), nullable=False),
        sa.Column("base_dataset", sa.String(64), nullable=False),
        sa.Column("source_name", sa.String(512), nullable=False),
        sa.Column("source_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("added_change", sa.BigInteger, nullable=False),
        sa.Column("deleted_change", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "change_moves",
        sa.Column("change_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("wafer_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("from_class", sa.String(32), nullable=False),
    )
    op.create_table(
        "imports",
        sa.Column("id", sa.String(32), primary_key=True),
        _project(),
        sa.Column("change_id", sa.String(32), nullable=False),
        sa.Column("result", JsonText, nullable=False),
        sa.Column("person", sa.String(256), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(64), primary_key=True),
        _project(),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("data_version", sa.Integer, nullable=False),
        sa.Column("info", JsonText, nullable=False),
        sa.Column("training_lots", JsonText, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(128), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        _project(),
        sa.Column("dataset_id", sa.String(64), nullable=False),
        sa.Column("data_version", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String(64), unique=True),
        sa.Column("spec", JsonText, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("seen", JsonText, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.Column("problem", JsonText),
        sa.Column("accepted_change", sa.String(32), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "model_versions",
        sa.Column("model_id", sa.String(128), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("project_id", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(128), nullable=False, unique=True),
        sa.Column("score", sa.Float(53)),
        sa.Column("published_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "preferences",
        sa.Column("person", sa.String(256), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(1024), nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("page", sa.String(256), nullable=False),
        sa.Column("person", sa.String(256), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("person", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("params", JsonText, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("changes_by_project", "changes", ["project_id", "number"])
    op.create_index(
        "classes_name", "classes", ["project_id", "name_key"], unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_index(
        "wafers_of_card",
        "wafers",
        ["project_id", "class_id", "generated", "lot", "number"],
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_index("wafers_of_class", "wafers", ["class_id", "number"], sqlite_where=_LIVE, postgresql_where=_LIVE)
    op.create_index("wafers_of_project", "wafers", ["project_id", "number"], sqlite_where=_LIVE, postgresql_where=_LIVE)
    op.create_index("wafers_by_content", "wafers", ["project_id", "sha256"])
    op.create_index("wafers_by_original", "wafers", ["source_sha256"])
    op.create_index("wafers_by_change", "wafers", ["added_change"])
    op.create_index("wafers_by_deletion", "wafers", ["deleted_change"])
    op.create_index("datasets_by_fingerprint", "datasets", ["project_id", "fingerprint"], unique=True)
    op.create_index("runs_by_project", "runs", ["project_id", "kind", "number"])
    op.create_index("audit_by_subject", "audit", ["subject", "number"])
    _make_append_only()


def _make_append_only() -> None:
    """Lets the database itself refuse to change or delete entries of the audit log."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
    )
