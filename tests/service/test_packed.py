"""A decision's numbers lie in the log as bytes, and mean what they meant as arrays."""

from collections.abc import Sequence
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from service import copying, db, queries
from service.models import Decision
from tests import copied

ROW = """
INSERT INTO decisions (id, campaign_id, revision, snapshot, unit, segment, mask, {0}simplex, arm,
    propensity, reason, why, decided_at, expires_at, {0}context)
VALUES (gen_random_uuid(), 1, 1, 1, '\\x00', 0, 1, :simplex, :arm, 1, 'policy', '{{}}', now(),
    now(), :context)
"""
NUMBERS: list[tuple[list[float], list[int]]] = [
    ([1.0], []),
    ([0.0, 1.0], [0]),
    ([1 / 3, 2 / 3, 0.0], [-1, 1, 65_535, -65_535]),
    ([0.1, 1e-300, 5e-9, 0.9 - 5e-9], list(range(-32, 32))),
]


@pytest.fixture
def connection(empty_database_url: str) -> Any:
    made = db.engine(empty_database_url)
    with made.connect() as connection:
        yield connection
    made.dispose()


def migrate(connection: Connection, how: Any, to: str) -> None:
    alembic = Alembic()
    alembic.set_main_option("script_location", "migrations")
    alembic.attributes["connection"] = connection
    how(alembic, to)
    connection.commit()


def test_arrays_become_bytes_and_arrays_again(connection: Connection) -> None:
    migrate(connection, command.upgrade, "0017")
    for simplex, context in NUMBERS:
        values = {"simplex": simplex, "context": context, "arm": len(simplex) - 1}
        connection.execute(text(ROW.format("")), values)
    connection.commit()
    whole = text("SELECT * FROM decisions ORDER BY position")
    before = connection.execute(whole).all()
    migrate(connection, command.upgrade, "0018")
    query = select(Decision.simplex, Decision.context).order_by(Decision.position)
    assert [tuple(row) for row in connection.execute(query)] == NUMBERS
    migrate(connection, command.downgrade, "0017")
    assert connection.execute(whole).all() == before


def test_an_arm_has_its_place_in_the_simplex(connection: Connection) -> None:
    migrate(connection, command.upgrade, "head")
    with pytest.raises(IntegrityError, match="decisions_arm"):
        connection.execute(
            text(ROW.format("packed_")), {"simplex": bytes(16), "context": b"", "arm": 2}
        )


@pytest.mark.parametrize(("schema", "names"), [("0017", copying.COLUMNS), ("head", copied.COLUMNS)])
def test_a_carrier_of_another_release_waits(
    connection: Connection, schema: str, names: Sequence[str]
) -> None:
    """It must not take for bytes what is an array, nor set aside what another one can append."""
    migrate(connection, command.upgrade, schema)
    row = copying.row(
        bytes(16), 1, 1, 1, bytes(16), 0, 1, copying.chosen([1.0], 0, 1.0),
        copying.said("policy", None, b"{}"), 0, 0, 0, b"",
    )  # fmt: skip
    statement = queries._copy_into("decisions", names)
    with pytest.raises(SQLAlchemyError, match="column") as raised:
        queries.copy(connection, statement, copying.stream([row]))
    assert not isinstance(raised.value, IntegrityError | DataError)
