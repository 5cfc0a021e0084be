"""A campaign tells what its discounts have cost: no page adds up the rewards of all of history."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

SPENT = "(SELECT coalesce(sum(discount_minor), 0) FROM rewards WHERE campaign_id = campaigns.id)"


def upgrade() -> None:
    _hold()
    _rename("dropped_discount_minor", "discount_minor", f"dropped_discount_minor + {SPENT}")
    op.drop_index("rewards_campaign", table_name="rewards")


def downgrade() -> None:
    _hold()
    op.create_index("rewards_campaign", "rewards", ["campaign_id"], unique=False)
    _rename("discount_minor", "dropped_discount_minor", f"discount_minor - {SPENT}")


def _rename(old: str, new: str, value: str) -> None:
    """Replace a column: the name of a renamed one would stay that of its constraint."""
    op.add_column(
        "campaigns", sa.Column(new, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.execute(f"UPDATE campaigns SET {new} = {value}")
    op.drop_column("campaigns", old)


def _hold() -> None:
    """Keep learners out, in the order in which they take these tables."""
    op.execute("LOCK TABLE campaigns, rewards IN ACCESS EXCLUSIVE MODE")
