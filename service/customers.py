"""Stored attributes of units: what segment rules and features read when a request does not send it.

A unit is known by its keyed pseudonym only; the plain identifier is never stored.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from service import audit
from service.errors import UnknownCustomer
from service.models import Customer


class Attributes(NamedTuple):
    """What is stored about one unit, and since when."""

    values: dict[str, Any]
    updated_at: dt.datetime


def upsert(
    session: Session,
    rows: Sequence[tuple[bytes, Mapping[str, Any]]],
    *,
    actor: str,
) -> int:
    """Replace the attributes of units and return how many units that were.

    ``rows`` are (pseudonym, attributes); of a unit that is named twice, the last one counts.
    """
    latest = {unit: dict(attributes) for unit, attributes in rows}
    if not latest:
        return 0
    # One order for everybody, so that two imports of the same units wait instead of deadlocking.
    values = [
        {"unit": unit, "attributes": latest[unit], "updated_at": func.clock_timestamp()}
        for unit in sorted(latest)
    ]
    statement = insert(Customer).values(values)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Customer.unit],
            set_={
                "attributes": statement.excluded.attributes,
                "updated_at": statement.excluded.updated_at,
            },
        )
    )
    audit.record(
        session,
        actor=actor,
        action="customers.import",
        subject="customers",
        detail={"units": len(latest)},
    )
    session.execute(select(func.pg_notify("barter", "customers")))
    session.flush()
    return len(latest)


def get(session: Session, unit: bytes) -> Attributes:
    """Return what is stored about a unit; raises `UnknownCustomer`."""
    customer = session.get(Customer, unit)
    if customer is None:
        raise UnknownCustomer()
    return Attributes(dict(customer.attributes), customer.updated_at)
