"""Runs of files of customers, and decisions that COPY adds without looking at each one's campaign."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

KEY = "decisions_campaign_id_fkey"


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), primary_key=True),
        sa.Column("campaign_id", sa.Integer(), sa.ForeignKey("campaigns.id"), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("rows BETWEEN 0 AND total", name="runs_rows"),
    )
    op.create_index("runs_file", "runs", ["campaign_id", "digest"])
    # Who appends holds the log's lock, and so does who deletes a draft (`service.campaigns`).
    op.drop_constraint(KEY, "decisions", type_="foreignkey")


def downgrade() -> None:
    op.create_foreign_key(KEY, "decisions", "campaigns", ["campaign_id"], ["id"])
    op.drop_table("runs")
