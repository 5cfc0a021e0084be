"""Products to offer each customer, and what purchases say was taken off."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "customers",
        sa.Column(
            "recommended",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
    )
    op.add_column("outcomes", sa.Column("discount_minor", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("outcomes", "discount_minor")
    op.drop_column("customers", "recommended")
