"""A decision's simplex and context as bytes: half the room, and less work for PostgreSQL.

Every row is written anew, while nobody else may read or write any; hosts keep what they decide
meanwhile in their local logs. The columns get other names: carriers of the last release, whose COPY
would be taken for bytes as it is, and those of this one that come early, fail and wait.
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
    ALTER COLUMN {context} DROP DEFAULT,
    ALTER COLUMN {simplex} TYPE {chances},
    ALTER COLUMN {context} TYPE {features},
    ALTER COLUMN {context} SET DEFAULT {nothing}
"""
WITHIN = "ALTER TABLE decisions ADD CONSTRAINT decisions_arm CHECK ({} AND arm >= 0)"
# PostgreSQL 18 names what must not be null after its column, and keeps that name.
NAMED = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'decisions'::regclass
               AND conname = 'decisions_{0}_not_null') THEN
        ALTER TABLE decisions
            RENAME CONSTRAINT decisions_{0}_not_null TO decisions_{1}_not_null;
    END IF;
END $$
"""


def upgrade() -> None:
    _hold()
    op.execute(PACKED.format(array="double precision", send="float8send(one)"))
    op.execute(PACKED.format(array="bigint", send="int4send(one::int4)"))
    op.execute(
        TURN.format(
            simplex="simplex",
            context="context",
            chances="bytea USING pg_temp.packed(simplex)",
            features="bytea USING pg_temp.packed(context)",
            nothing="''",
        )
    )
    for name in ("simplex", "context"):
        _rename(name, f"packed_{name}")
    op.execute(WITHIN.format("octet_length(packed_simplex) > 8 * arm"))


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
            simplex="packed_simplex",
            context="packed_context",
            chances="double precision[] USING pg_temp.chances(packed_simplex)",
            features="bigint[] USING pg_temp.features(packed_context)",
            nothing="'{}'",
        )
    )
    for name in ("simplex", "context"):
        _rename(f"packed_{name}", name)
    op.execute(WITHIN.format("cardinality(simplex) > arm"))


def _rename(old: str, new: str) -> None:
    op.alter_column("decisions", old, new_column_name=new)
    op.execute(NAMED.format(old, new))


def _hold() -> None:
    """Keep everybody out; who appends holds the log's lock first."""
    op.execute("SELECT pg_advisory_xact_lock(7310014)")
    op.execute("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
