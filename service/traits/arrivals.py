"""Between refits: what customers did just now, in their tastes and in the products to offer them.

Whose interactions or receipts came in, a few at a time, stands in the table `arrivals`. A thread of
the learner folds these customers in, the newest first, and publishes what the recommender tells of
them; all else that is computed of customers waits for the refit. A refit forgets the arrivals that
it has read. The others are folded in once more after it, because it may have published over them
what it had read before they came.
"""

import datetime as dt
import threading
from collections.abc import Collection
from typing import Any

import orjson
import structlog
from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.contexts import TRAITS_LAST
from service.db import transaction
from service.definition import LISTED
from service.models import Arrival
from service.traits.publish import rounded
from service.traits.recommend import Recommended, Recommender

MOST = 100
LOOK_SECONDS = 1.0
SPARE = 3
"""So many times more products are ranked than a list holds: some may not be on sale."""
OPEN_SECONDS = 120.0
"""What was begun so long before a refit read the history had been committed by then."""
LOCK = 7_310_006
log = structlog.get_logger()

_TRY_LOCK = text(f"SELECT pg_try_advisory_xact_lock({LOCK})")
_ON_SALE = text("""
    SELECT id FROM unnest(CAST(:ids AS text[])) AS one (id)
    WHERE NOT EXISTS (SELECT FROM products)
    OR EXISTS (SELECT FROM products WHERE id = one.id AND coalesce(stock, 1) > 0)
""")
_STORE = text("""
    INSERT INTO customers (unit, attributes, traits, recommended, traits_at)
    VALUES (:unit, '{}', CAST(:tastes AS jsonb), :listed, clock_timestamp())
    ON CONFLICT (unit) DO UPDATE SET
        traits = CASE WHEN customers.traits_at > clock_timestamp() - CAST(:last AS interval)
            THEN customers.traits || excluded.traits ELSE excluded.traits END,
        traits_at = CASE WHEN customers.traits_at > clock_timestamp() - CAST(:last AS interval)
            THEN customers.traits_at ELSE excluded.traits_at END,
        recommended = excluded.recommended, updated_at = clock_timestamp()
""")


def fold_in(engine: Engine, recommender: Recommender) -> int:
    """Publish the tastes and products of customers with news; return how many arrivals that were.

    None before there is a recommender, or while another learner is at it.
    """
    with transaction(engine) as session:
        if not session.scalar(_TRY_LOCK):
            return 0
        newest = select(Arrival.id, Arrival.unit).where(~Arrival.folded_in)
        rows = session.execute(newest.order_by(Arrival.id.desc()).limit(MOST)).all()
        # In the order in which refits take customers, so that neither waits in a circle.
        units = sorted({bytes(row.unit) for row in rows})
        found = {unit: recommender.for_unit(session, unit, SPARE * LISTED) for unit in units}
        if not all(one.tastes for one in found.values()):
            return 0
        _store(session, found)
        done = Arrival.id.in_([row.id for row in rows])
        session.execute(update(Arrival).where(done).values(folded_in=True))
    return len(rows)


def read_until(session: Session) -> dt.datetime:
    """Return a moment: what arrived before it, a refit that begins to read now has read."""
    now: dt.datetime = session.scalars(select(func.clock_timestamp())).one()
    return now - dt.timedelta(seconds=OPEN_SECONDS)


def settle(engine: Engine, moment: dt.datetime) -> None:
    """Forget the arrivals that the refit has read, and have all others folded in once more."""
    with engine.begin() as connection:
        connection.execute(delete(Arrival).where(Arrival.at < moment))
        connection.execute(update(Arrival).where(Arrival.folded_in).values(folded_in=False))


def _store(session: Session, found: dict[bytes, Recommended]) -> None:
    ranked = {key for one in found.values() for key, _ in one.products}
    on_sale = set(session.scalars(_ON_SALE, {"ids": list(ranked)}))
    if found:
        session.execute(_STORE, [_row(unit, one, on_sale) for unit, one in found.items()])
        session.execute(select(func.pg_notify("barter", "customers")))


def _row(unit: bytes, found: Recommended, on_sale: Collection[str]) -> dict[str, Any]:
    tastes = {name: rounded(value) for name, value in found.tastes.items()}
    listed = [key for key, _ in found.products if key in on_sale][:LISTED]
    return {"unit": unit, "tastes": orjson.dumps(tastes).decode(), "listed": listed,
            "last": TRAITS_LAST}  # fmt: skip


class Observer:
    """Folds in who has just come, until it is told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._recommender = engine, Recommender()

    def run(self, stop: threading.Event) -> None:
        """Look every second; trouble is logged and tried again."""
        while not stop.wait(LOOK_SECONDS):
            try:
                fold_in(self._engine, self._recommender)
            except SQLAlchemyError as error:
                log.warning("arrivals_wait", error=type(error).__name__)
                stop.wait(5.0)
            except Exception:
                log.exception("arrivals_failed")
                stop.wait(60.0)
