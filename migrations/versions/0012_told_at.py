"""When the catalogue last told a product's price and stock."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("price_at", "stock_at"):
        op.add_column(
            "products",
            sa.Column(
                name,
                sa.DateTime(timezone=True),
                server_default=sa.text("clock_timestamp()"),
                nullable=False,
            ),
        )


def downgrade() -> None:
    op.drop_column("products", "stock_at")
    op.drop_column("products", "price_at")
