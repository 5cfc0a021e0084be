"""Decisions of a file are kept as they were packed until they are entered in the log."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pending_decisions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
    )
    # Numbers that were drawn at random do not get shorter, and the attempt costs much.
    op.execute("ALTER TABLE pending_decisions ALTER COLUMN packed SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM pending_decisions) THEN RAISE EXCEPTION"
        " 'decisions wait to be entered in the log; run barter learn for a minute first';"
        " END IF; END $$"
    )
    op.drop_table("pending_decisions")
