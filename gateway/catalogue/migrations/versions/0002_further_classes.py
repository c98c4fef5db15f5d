"""Further classes that wafers show."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LIVE = sa.text("deleted_change IS NULL")


def upgrade() -> None:
    op.create_table(
        "further_classes",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("project_id", sa.String(32), sa.ForeignKey("projects.id", ondelete="CASCADE"), nullable=False),
        sa.Column("wafer_number", _NUMBER, sa.ForeignKey("wafers.number", ondelete="CASCADE"), nullable=False),
        sa.Column("class_id", sa.String(32), sa.ForeignKey("classes.id", ondelete="CASCADE"), nullable=False),
        sa.Column("generated", sa.Boolean, nullable=False),
        sa.Column("lot", sa.String(256), nullable=False),
        sa.Column("added_change", sa.BigInteger, nullable=False),
        sa.Column("deleted_change", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "further_of_card",
        "further_classes",
        ["project_id", "class_id", "generated", "lot"],
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_index(
        "further_of_class",
        "further_classes",
        ["class_id", "wafer_number"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_index("further_of_wafer", "further_classes", ["wafer_number"])
    op.create_index("further_by_change", "further_classes", ["added_change"])
    op.create_index("further_by_deletion", "further_classes", ["deleted_change"])
