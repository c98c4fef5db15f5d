"""What the quantised variant of a training was published as."""

import sqlalchemy as sa
from alembic import op

from services.common.database import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_versions", sa.Column("quantised_version", sa.BigInteger))
    op.add_column("model_versions", sa.Column("quantised_score", sa.Float(53)))
    op.add_column("model_versions", sa.Column("quantised_at", UtcDateTime))
