"""Products as context of decisions: the pace of sales, and when what is known of one changed."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("products", sa.Column("pace", sa.Double(), nullable=True))
    op.add_column("products", sa.Column("pace_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "products",
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
    )
    op.create_index("products_updated_at", "products", ["updated_at"])


def downgrade() -> None:
    op.drop_index("products_updated_at", "products")
    op.drop_column("products", "updated_at")
    op.drop_column("products", "pace_at")
    op.drop_column("products", "pace")
