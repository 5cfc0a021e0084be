"""A decision's simplex and context as bytes: half the room, and less work for PostgreSQL.

Every row is written anew, while nobody else may read or write any; hosts keep what they decide
meanwhile in their local logs.
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

PACKED = """
CREATE FUNCTION pg_temp.packed(numbers {array}[]) RETURNS bytea IMMUTABLE LANGUAGE sql AS $$
    SELECT coalesce(string_agg({send}, '' ORDER BY place), '')
    FROM unnest(numbers) WITH ORDINALITY AS each (one, place)
$$
"""
UNPACKED = """
CREATE FUNCTION pg_temp.{name}(packed bytea) RETURNS {array}[] IMMUTABLE LANGUAGE sql AS $$
    SELECT coalesce(array_agg({number} ORDER BY place), '{{}}')
    FROM generate_series(0, length(packed) / {size} - 1) AS place,
        encode(substr(packed, place * {size} + 1, {size}), 'hex') AS digits,
        CAST('x' || digits AS bit({bits})) AS bits
$$
"""
# As IEEE 754 has it. No number of a simplex is negative, or so small that its form is another.
DOUBLE = """
    CASE WHEN bits::bigint = 0 THEN 0
    ELSE (1 + (bits::bigint & ((1::bigint << 52) - 1)) / 2::float8 ^ 52)
        * 2::float8 ^ ((bits::bigint >> 52) - 1023) END
"""
TURN = """
ALTER TABLE decisions
    DROP CONSTRAINT decisions_arm,
    ALTER COLUMN context DROP DEFAULT,
    ALTER COLUMN simplex TYPE {simplex},
    ALTER COLUMN context TYPE {context},
    ALTER COLUMN context SET DEFAULT {nothing},
    ADD CONSTRAINT decisions_arm CHECK ({within} AND arm >= 0)
"""


def upgrade() -> None:
    _hold()
    op.execute(PACKED.format(array="double precision", send="float8send(one)"))
    op.execute(PACKED.format(array="bigint", send="int4send(one::int4)"))
    op.execute(
        TURN.format(
            simplex="bytea USING pg_temp.packed(simplex)",
            context="bytea USING pg_temp.packed(context)",
            nothing="''",
            within="octet_length(simplex) > 8 * arm",
        )
    )


def downgrade() -> None:
    _hold()
    op.execute(
        UNPACKED.format(name="chances", array="double precision", number=DOUBLE, size=8, bits=64)
    )
    op.execute(
        UNPACKED.format(
            name="features", array="bigint", number="bits::int4::bigint", size=4, bits=32
        )
    )
    op.execute(
        TURN.format(
            simplex="double precision[] USING pg_temp.chances(simplex)",
            context="bigint[] USING pg_temp.features(context)",
            nothing="'{}'",
            within="cardinality(simplex) > arm",
        )
    )


def _hold() -> None:
    """Keep everybody out; who appends holds the log's lock first."""
    op.execute("SELECT pg_advisory_xact_lock(7310014)")
    op.execute("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
