"""Keys of servers that decide in their own process."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

KNOWN = "scopes <@ ARRAY[{names}]::text[] AND cardinality(scopes) > 0"


def upgrade() -> None:
    replace("'decide','reward','manage','read','local'")


def downgrade() -> None:
    op.execute(
        "UPDATE api_keys SET scopes = array_remove(scopes, 'local') WHERE 'local' = ANY(scopes)"
        " AND cardinality(scopes) > 1"
    )
    op.execute("DELETE FROM api_keys WHERE scopes = ARRAY['local']")
    replace("'decide','reward','manage','read'")


def replace(names: str) -> None:
    op.drop_constraint("api_keys_scopes", "api_keys")
    op.create_check_constraint("api_keys_scopes", "api_keys", KNOWN.format(names=names))
