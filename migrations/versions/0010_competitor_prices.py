"""What competitors ask for products, and files of it."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0007"
branch_labels = None
depends_on = None

KINDS = "kind IN ('customers', 'products', 'competitor_prices', 'interactions', 'transactions')"
EARLIER_KINDS = "kind IN ('customers', 'products', 'interactions', 'transactions')"


def upgrade() -> None:
    op.create_table(
        "competitor_prices",
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("competitor", sa.Text(), nullable=False),
        sa.Column("price_minor", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("price_minor > 0", name="competitor_prices_price"),
        sa.PrimaryKeyConstraint("product_id", "competitor"),
    )
    op.drop_constraint("imports_kind", "imports")
    op.create_check_constraint("imports_kind", "imports", KINDS)


def downgrade() -> None:
    op.execute("DELETE FROM imports WHERE kind = 'competitor_prices'")
    op.drop_constraint("imports_kind", "imports")
    op.create_check_constraint("imports_kind", "imports", EARLIER_KINDS)
    op.drop_table("competitor_prices")
