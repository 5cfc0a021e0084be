"""Retrainings: what policies were fitted to the log, and which snapshots count on from it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retrainings",
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("decision_position", sa.BigInteger(), nullable=False),
        sa.Column("outcome_position", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IS NULL OR error IS NULL", name="retrainings_one_end"),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"]),
        sa.PrimaryKeyConstraint("campaign_id", "number"),
    )
    op.add_column("snapshots", sa.Column("retraining", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        "snapshots_retraining",
        "snapshots",
        "retrainings",
        ["campaign_id", "retraining"],
        ["campaign_id", "number"],
    )


def downgrade() -> None:
    op.drop_constraint("snapshots_retraining", "snapshots", type_="foreignkey")
    op.drop_column("snapshots", "retraining")
    op.drop_table("retrainings")
