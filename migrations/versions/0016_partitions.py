"""The log in partitions, by position, and how much of it each campaign no longer has.

Rows stay where they are: the tables of before become the first partitions.
"""

import sqlalchemy as sa
from alembic import op
from psycopg import sql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

ROWS = 100_000
UNIQUE = {"decisions": "id", "outcomes": "event_id"}
INDEXES = {
    "decisions": {"campaign": "campaign_id, position", "unit": "unit"},
    "outcomes": {"campaign": "campaign_id, position", "decision": "decision_id"},
}
DROPPED = ("dropped_position", "dropped_discount_minor")
LIKE = "CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"


def upgrade() -> None:
    _hold()
    for column in DROPPED:
        op.add_column(
            "campaigns",
            sa.Column(column, sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        )
    for table in UNIQUE:
        _divide(table)


def downgrade() -> None:
    _hold()
    for column in DROPPED:
        op.drop_column("campaigns", column)
    for table in UNIQUE:
        _join(table)


def _hold() -> None:
    """Keep everybody out, in the order in which learners take these tables.

    Who appends holds the log's lock first.
    """
    op.execute("SELECT pg_advisory_xact_lock(7310014)")
    op.execute("LOCK TABLE campaigns, decisions, outcomes IN ACCESS EXCLUSIVE MODE")


def _divide(table: str) -> None:
    first, unique = f"{table}_0", UNIQUE[table]
    last = _last(table)
    _do("ALTER TABLE {} RENAME TO {}", table, first)
    _do("ALTER TABLE {} ALTER COLUMN position DROP IDENTITY", first)
    for name in ("pkey", f"{unique}_key", *INDEXES[table]):
        _do("ALTER INDEX {} RENAME TO {}", f"{table}_{name}", f"{first}_{name}")
    _do(LIKE + " PARTITION BY RANGE (position)", table, first)
    _number(table, last)
    # With these in place, those of the first partition become parts of them.
    _index(table)
    end = last + ROWS
    _do(f"ALTER TABLE {{}} ATTACH PARTITION {{}} FOR VALUES FROM (0) TO ({end:d})", table, first)
    following = f"{table}_{end:d}"
    _do(
        f"CREATE TABLE {{}} PARTITION OF {{}} FOR VALUES FROM ({end:d}) TO (MAXVALUE)",
        following, table,
    )  # fmt: skip
    _do("ALTER TABLE {} ADD UNIQUE ({})", following, unique)


def _join(table: str) -> None:
    """Make one table of the partitions again, which copies every row."""
    whole, last = f"{table}_whole", _last(table)
    _do(LIKE, whole, table)
    _do("INSERT INTO {} SELECT * FROM {}", whole, table)
    _do("DROP TABLE {}", table)
    _do("ALTER TABLE {} RENAME TO {}", whole, table)
    _number(table, last)
    _do("ALTER TABLE {} ADD UNIQUE ({})", table, UNIQUE[table])
    _index(table)


def _last(table: str) -> int:
    found = op.get_bind().scalar(sa.text(f"SELECT coalesce(max(position), 0) FROM {table}"))
    return int(found)


def _number(table: str, last: int) -> None:
    """Have rows numbered from the last position on."""
    _do("ALTER TABLE {} ADD PRIMARY KEY (position)", table)
    _do("ALTER TABLE {} ALTER COLUMN position ADD GENERATED ALWAYS AS IDENTITY", table)
    if last:
        sequence = sa.text("SELECT setval(pg_get_serial_sequence(:table, 'position'), :last)")
        op.execute(sequence.bindparams(table=table, last=last))


def _index(table: str) -> None:
    for name, columns in INDEXES[table].items():
        op.create_index(f"{table}_{name}", table, columns.split(", "))


def _do(statement: str, *names: str) -> None:
    """Execute a statement with names of tables, columns and indexes in it."""
    op.execute(sql.SQL(statement).format(*map(sql.Identifier, names)).as_string(None))
