"""Snapshots carry what most decisions are drawn from, computed where they are made."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("usual", sa.LargeBinary()))


def downgrade() -> None:
    op.drop_column("snapshots", "usual")
