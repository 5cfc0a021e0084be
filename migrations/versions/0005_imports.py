"""Imports: what a file brought, interactions, and an item's cost and stock."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("products", sa.Column("unit_cost_minor", sa.BigInteger(), nullable=True))
    op.add_column("products", sa.Column("stock", sa.BigInteger(), nullable=True))
    op.add_column("transactions", sa.Column("import_id", sa.Integer(), nullable=True))
    op.create_index("transactions_import", "transactions", ["import_id"], postgresql_using="brin")
    op.create_table(
        "interactions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("unit", sa.LargeBinary(), nullable=False),
        sa.Column("product_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("import_id", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('view', 'click', 'cart', 'purchase', 'review', 'return')",
            name="interactions_kind",
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("interactions_unit", "interactions", ["unit"])
    op.create_index("interactions_import", "interactions", ["import_id"], postgresql_using="brin")
    op.create_table(
        "imports",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("progress", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("stored", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("known", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rejected", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("quality", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('customers', 'products', 'interactions', 'transactions')", name="imports_kind"
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'reading', 'done', 'failed', 'undone')", name="imports_state"
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("imports_digest", "imports", ["digest"])
    op.create_table(
        "import_rejects",
        sa.Column("import_id", sa.Integer(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["import_id"], ["imports.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("import_id", "line"),
    )


def downgrade() -> None:
    op.drop_table("import_rejects")
    op.drop_table("imports")
    op.drop_table("interactions")
    op.drop_index("transactions_import", "transactions")
    op.drop_column("transactions", "import_id")
    op.drop_column("products", "stock")
    op.drop_column("products", "unit_cost_minor")
