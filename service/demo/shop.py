"""The demo's shop: its campaign, its import, and shoppers who answer to what they are offered.

The shop talks to Barter as any shop would, through the SDK and the HTTP API. How its shoppers
respond is known here (`world`) and nowhere in the service.
"""

import datetime as dt
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine, select

from bandits import simulate
from service import keys, users
from service.client import Client, Decision, Outcome, RefusedError
from service.config import Config
from service.db import transaction
from service.demo.panel import Panel
from service.demo.segments import SEGMENTS, unit_of
from service.demo.world import ARMS, MARGIN_RATE, Fit
from service.imports import load
from service.models import User

ACTOR = "demo"
EMAIL = "demo@barter.example"
ATTEMPTS = 20
SHOPPERS_AT_ONCE = 12
ARM_NAMES = ("No discount", "5 % off", "10 % off", "20 % off", "30 % off")
ARM_INDEX = {key: index for index, (key, _) in enumerate(ARMS)}
Report = Callable[[int, int], None]


class Access(NamedTuple):
    """How to get in: the console's log-in and the app server's key."""

    email: str
    password: str
    api_key: str


class Traffic(NamedTuple):
    """What happened on the shop's side; what it came to is read from the database.

    Attributes:
        sent: shoppers who got an arm from Barter.
        late: first calls that fell back on the default arm (time-out) and were repeated.
        lost: shoppers who never got an arm from Barter and were served the default.
        purchases: purchases reported and acknowledged.
        unreported: purchases that Barter never acknowledged.
        seconds: how long it took.
    """

    sent: int
    late: int
    lost: int
    purchases: int
    unreported: int
    seconds: float


def open_doors(engine: Engine) -> Access:
    """Create (or reset) the demo's console user and make an API key; return both secrets."""
    password = secrets.token_urlsafe(9)
    with transaction(engine) as session:
        known = session.scalar(select(User.id).where(User.email == EMAIL))
        if known is None:
            users.create(
                session, email=EMAIL, name="Demo", role="admin", password=password, actor=ACTOR
            )
        else:
            users.reset_password(session, known, password, actor=ACTOR)
            users.enable(session, known, actor=ACTOR)
        scopes = ("decide", "reward", "manage", "read")
        _, key = keys.create(session, name="demo shop", scopes=scopes, actor=ACTOR)
    return Access(EMAIL, password, key)


def import_products(engine: Engine, panel: Panel, report: Report) -> int:
    """Import the catalogue; the list price is an item's mean over its receipts."""
    sums = panel.lines.group_by("product_id").aggregate(
        [("list_minor", "sum"), ("quantity", "sum")]
    )
    price = {
        item: round(value / quantity)
        for item, value, quantity in zip(
            sums.column("product_id").to_pylist(),
            sums.column("list_minor_sum").to_pylist(),
            sums.column("quantity_sum").to_pylist(),
            strict=True,
        )
    }
    columns = [panel.products.column(name).to_pylist() for name in panel.products.column_names]
    rows = (
        load.ProductRow(str(item), department, category, kind, price.get(item))
        for item, department, category, kind in zip(*columns, strict=True)
    )
    return load.products(engine, rows, total=panel.products.num_rows, report=report)


def import_customers(engine: Engine, config: Config, fit: Fit, report: Report) -> int:
    """Import the households' attributes: what Barter's segment rules read."""
    known = fit.known
    rows = ((unit_of(int(id)), known.attributes(row)) for row, id in enumerate(known.id))
    return load.customers(engine, config, rows, actor=ACTOR, total=known.id.size, report=report)


def import_transactions(engine: Engine, config: Config, panel: Panel, report: Report) -> int:
    """Import the receipt lines under the households' pseudonyms."""
    total = panel.lines.num_rows
    return load.transactions(engine, config, _receipts(panel), total=total, report=report)


def _receipts(panel: Panel) -> Iterator[load.TransactionRow]:
    names = ("line_id", "household", "product_id", "basket", "quantity", "list_minor", "paid_minor")
    for batch in panel.lines.to_batches(max_chunksize=load.CHUNK_ROWS):
        columns = [batch.column(name).to_pylist() for name in names]
        # The shop's clock has no time zone; it is taken as UTC.
        when = pc.assume_timezone(batch.column("bought_at").cast(pa.timestamp("us")), "UTC")
        for id, household, product, basket, quantity, value, paid, at in zip(
            *columns, when.to_pylist(), strict=True
        ):
            yield load.TransactionRow(
                id, unit_of(household), str(product), str(basket), quantity, paid, value - paid, at
            )


def definition(fit: Fit, key: str) -> dict[str, Any]:
    """Return the campaign's definition, as the API takes it."""
    category = fit.category.capitalize()
    return {
        "key": key,
        "name": f"{category}: how deep a discount?",
        "description": f"Which discount on {category.lower()} earns most per visitor, by segment.",
        "currency": "USD",
        "arms": [
            {
                "key": arm,
                "name": name,
                "offer": {"kind": "percentage", "percent": percent}
                if percent
                else {"kind": "none"},
            }
            for (arm, percent), name in zip(ARMS, ARM_NAMES, strict=True)
        ],
        "default_arm": "none",
        "segments": list(SEGMENTS),
        "objective": "profit",
        "policy": {"name": "thompson_hierarchical"},
        "floor": 0.01,
        "holdout": 0.05,
        "attribution_seconds": 7 * 86_400,
        "margin_rate": MARGIN_RATE,
        "basket_minor": fit.typical_minor,
    }


def slug(category: str) -> str:
    """Return a campaign key out of a category's name.

    >>> slug("SOFT DRINKS")
    'soft-drinks'
    """
    return re.sub(r"[^a-z0-9]+", "-", category.lower()).strip("-")[:48] or "demo"


def launch(manage: Client, fit: Fit, *, key: str) -> str:
    """Create and launch the campaign over the API; return its key, numbered if it was taken."""
    for number in range(1, 1000):
        wanted = key if number == 1 else f"{key}-{number}"
        try:
            manage.request("POST", "/v1/campaigns", definition(fit, wanted))
        except RefusedError as error:
            if error.status != 409:
                raise
            continue
        manage.request("POST", f"/v1/campaigns/{wanted}/launch")
        return wanted
    raise RuntimeError(f"a thousand campaigns are called {key} already")


def shop(
    client: Client, fit: Fit, *, campaign: str, seed: int, count: int, report: Report
) -> Traffic:
    """Send ``count`` shoppers, one HTTP request each, and report what they buy."""
    till = _Till(client, fit, campaign, seed, count, report)
    began = dt.datetime.now(dt.UTC)
    with ThreadPoolExecutor(SHOPPERS_AT_ONCE, thread_name_prefix="shopper") as pool:
        lanes = [pool.submit(till.serve) for _ in range(SHOPPERS_AT_ONCE)]
        try:
            for lane in lanes:
                lane.result()
        except BaseException:
            till.closed.set()
            raise
    seconds = (dt.datetime.now(dt.UTC) - began).total_seconds()
    return Traffic(till.sent, till.late, till.lost, till.purchases, till.unreported, seconds)


class _Till:
    """The state that the shopper threads share."""

    def __init__(
        self, client: Client, fit: Fit, campaign: str, seed: int, count: int, report: Report
    ) -> None:
        self._client, self._fit, self._campaign, self._seed = client, fit, campaign, seed
        self._visits = simulate.visits(seed, count, segment_of_unit=fit.segment, weight=fit.weight)
        self._count, self._report = count, report
        self._next = iter(range(count))
        self._lock = threading.Lock()
        self.closed = threading.Event()
        self.sent = self.late = self.lost = self.purchases = self.unreported = 0

    def serve(self) -> None:
        """Serve shoppers until there are none left."""
        while not self.closed.is_set():
            with self._lock:
                number = next(self._next, None)
            if number is None:
                return
            self._serve(number)

    def _serve(self, number: int) -> None:
        decision, repeats = self._decide(number)
        bought = stored = False
        if not decision.is_default:
            outcome = reaction_to(self._fit, self._visits, number, decision)
            if outcome is not None:
                event = outcome._replace(event_id=f"{self._campaign}:{self._seed}:{number}")
                bought = True
                stored = any(self._client.outcomes([event]) for _ in range(ATTEMPTS))
        with self._lock:
            self.sent += not decision.is_default
            self.lost += decision.is_default
            self.late += repeats > 0
            self.purchases += stored
            self.unreported += bought and not stored
            done = self.sent + self.lost
        if done % 100 == 0 or done == self._count:
            self._report(done, self._count)

    def _decide(self, number: int) -> tuple[Decision, int]:
        """Ask until Barter answers: a time-out may have left a stored decision behind."""
        unit = unit_of(int(self._fit.known.id[self._visits.unit[number]]))
        request = f"{self._campaign}:{self._seed}:{number}"
        decision, repeats = self._client.decide(self._campaign, unit, request_id=request), 0
        while decision.is_default and repeats < ATTEMPTS:
            decision = self._client.decide(self._campaign, unit, request_id=request)
            repeats += 1
        return decision, repeats


def reaction_to(
    fit: Fit, visits: simulate.Visits, number: int, decision: Decision
) -> Outcome | None:
    """Return what one shopper buys under the arm that Barter chose; None for nothing."""
    one = simulate.some(visits, slice(number, number + 1))
    arm = np.array([ARM_INDEX[decision.arm]])
    (bought,), (revenue,), (margin,), _ = simulate.react(fit.world, one, arm)
    if not bought:
        return None
    return Outcome(decision.decision_id, "purchased", int(revenue), int(margin))
