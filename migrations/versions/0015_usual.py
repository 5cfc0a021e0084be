"""Snapshots carry what most decisions are drawn from; credits are kept without a look elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

KEY = "rewards_campaign_id_fkey"


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("usual", sa.LargeBinary()))
    # A draft is never credited with anything, and nothing else is deleted.
    op.drop_constraint(KEY, "rewards", type_="foreignkey")


def downgrade() -> None:
    op.create_foreign_key(KEY, "rewards", "campaigns", ["campaign_id"], ["id"])
    op.drop_column("snapshots", "usual")
