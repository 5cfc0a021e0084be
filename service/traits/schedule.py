"""When traits are computed: a thread of the learner looks, and one learner at a time does it.

Due is a refit once the receipts and interactions that came in since the last one are a tenth of
what it had, and `FEWEST` at least; or a day later, if anything came in at all. Not while a file is
being read, which would be many times over, nor sooner than `PACE` times as long as it took.
"""

import datetime as dt
import threading

import structlog
from sqlalchemy import Engine, exists, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.models import Import
from service.traits import arrivals, history, publish, stored
from service.traits.fit import fit

FEWEST = 1_000
SHARE = 0.1
DAILY = dt.timedelta(days=1)
PACE = 10.0
LOOK_SECONDS = 2.0
LOCK = 7_310_005
log = structlog.get_logger()

_ARRIVED = text(
    "SELECT coalesce(sum(n_tup_ins), 0) FROM pg_stat_user_tables"
    " WHERE relname IN ('transactions', 'interactions')"
)
_TRY_LOCK, _UNLOCK = (
    text(f"SELECT {name}({LOCK})") for name in ("pg_try_advisory_lock", "pg_advisory_unlock")
)


def arrived(session: Session) -> int:
    """Return how many rows have ever come in, as the database counts them; cheap, not exact."""
    return int(session.scalar(_ARRIVED) or 0)


def due(session: Session, *, now: dt.datetime | None = None) -> bool:
    """Tell whether enough has come in since the last fit."""
    count, last = arrived(session), stored.newest(session)
    if last is None:
        return count >= FEWEST and not _reading(session)
    age = (now or dt.datetime.now(dt.UTC)) - last.created_at
    if age < DAILY and (_reading(session) or age.total_seconds() < PACE * last.summary["seconds"]):
        return False
    had = int(last.summary.get("arrived", 0))
    # The database counts from zero again after a crash: then what it counts is all news.
    news = count - had if count >= had else count
    return news >= max(FEWEST, SHARE * had) or (news > 0 and age > DAILY)


def _reading(session: Session) -> bool:
    return bool(session.scalar(select(exists().where(Import.state == "reading"))))


def refresh(engine: Engine) -> int | None:
    """Compute and publish all traits; return the version, or None where another is at it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(_TRY_LOCK):
            return None
        try:
            return _refresh(engine)
        finally:
            if not connection.invalidated:
                connection.execute(_UNLOCK)


def _refresh(engine: Engine) -> int:
    started = dt.datetime.now(dt.UTC)
    with Session(engine) as session:
        count, last = arrived(session), publish.last(session)
        until = arrivals.read_until(session)
    shop = history.read(engine)
    fitted = fit(shop, last=last, judge=True)
    seconds = (dt.datetime.now(dt.UTC) - started).total_seconds()
    # The search for options comes rarely: the next refit need not wait for it.
    usual = seconds - fitted.summary["recommender"].get("search_seconds", 0.0)
    fitted.summary.update(arrived=count, seconds=round(usual, 1))
    version = publish.publish(engine, shop, fitted)
    arrivals.settle(engine, until)
    log.info("traits_published", version=version, customers=len(shop.units), seconds=seconds,
             failed=fitted.summary["failed"])  # fmt: skip
    return version


class Observer:
    """Computes traits whenever that is due, until it is told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, stop: threading.Event) -> None:
        """Look every few seconds; trouble is logged and tried again."""
        while not stop.wait(LOOK_SECONDS):
            try:
                with Session(self._engine) as session:
                    wanted = due(session)
                if wanted:
                    refresh(self._engine)
            except SQLAlchemyError as error:
                log.warning("traits_wait", error=type(error).__name__)
                stop.wait(5.0)
            except Exception:
                log.exception("traits_failed")
                stop.wait(60.0)
