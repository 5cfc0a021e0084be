"""The demo's figures: everything about the campaign is read from Postgres, by SQL.

Only the true expected profit of (segment, arm) comes from the simulator: it goes into the query as
the table ``truth``. What is counted are the logged decisions that the policy drew, in their order.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, Double, Engine, Integer, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from bandits import simulate

TRUTH = """
    truth AS (
        SELECT * FROM unnest(:segments, :arms, :profits, :bests, :splits, :fixeds)
            AS t (segment, arm, profit, best, split, fixed)
    ),
    drawn AS (
        SELECT d.id, d.segment, d.arm, row_number() OVER (ORDER BY d.position) AS n
        FROM decisions d JOIN campaigns c ON c.id = d.campaign_id
        WHERE c.key = :campaign AND d.reason IN ('policy', 'sticky')
    )
"""
TOTALS = f"""
    WITH {TRUTH}
    SELECT count(*) AS decisions,
        coalesce(sum(r.profit_minor), 0)::float8 AS earned,
        coalesce(sum(r.conversions), 0) AS purchases,
        coalesce(sum(t.profit), 0) AS profit,
        coalesce(sum(t.best), 0) AS best,
        coalesce(sum(t.split), 0) AS split,
        coalesce(sum(t.fixed), 0) AS fixed
    FROM drawn JOIN truth t USING (segment, arm) LEFT JOIN rewards r ON r.decision_id = drawn.id
    WHERE drawn.n > :after AND drawn.n <= :until
"""
COUNTS = text("""
    SELECT count(*) AS decisions, count(*) FILTER (WHERE reason = 'holdout') AS holdout
    FROM decisions WHERE campaign_id = (SELECT id FROM campaigns WHERE key = :campaign)
""")
SETTLED = text("""
    SELECT (SELECT count(*) FROM decisions WHERE campaign_id = c.id) >= :decisions
        AND (SELECT count(*) FROM outcomes WHERE campaign_id = c.id) >= :outcomes
        AND s.decision_position >= (SELECT max(position) FROM decisions WHERE campaign_id = c.id)
        AND s.outcome_position >= coalesce(
            (SELECT max(position) FROM outcomes WHERE campaign_id = c.id), 0)
    FROM campaigns c JOIN LATERAL (
        SELECT * FROM snapshots WHERE campaign_id = c.id ORDER BY version DESC LIMIT 1
    ) s ON true
    WHERE c.key = :campaign
""")
LEARNT = text("""
    SELECT s.decision_position >= (SELECT position FROM decisions WHERE id = :decision)
        AND (CAST(:event AS text) IS NULL
            OR s.outcome_position >= (SELECT position FROM outcomes WHERE event_id = :event))
    FROM snapshots s WHERE s.campaign_id = (SELECT id FROM campaigns WHERE key = :campaign)
    ORDER BY s.version DESC LIMIT 1
""")
OUTCOMES = text("""
    SELECT position, extract(epoch FROM received_at)::float8 FROM outcomes
    WHERE campaign_id = (SELECT id FROM campaigns WHERE key = :campaign) AND kind = 'purchased'
    ORDER BY position
""")
SNAPSHOTS = text("""
    SELECT version, outcome_position FROM snapshots
    WHERE campaign_id = (SELECT id FROM campaigns WHERE key = :campaign) ORDER BY version
""")
SERVED = text("""
    SELECT snapshot, extract(epoch FROM min(decided_at))::float8 FROM decisions
    WHERE campaign_id = (SELECT id FROM campaigns WHERE key = :campaign) GROUP BY snapshot
    ORDER BY snapshot
""")


class Totals(NamedTuple):
    """Sums over a stretch of a campaign's randomised decisions; amounts in minor units.

    Attributes:
        decisions: how many there were.
        earned: profit observed: what the learner credited.
        purchases: decisions that converted.
        profit: true expected profit of the arms that were served.
        best: true expected profit, had every decision had its segment's best arm.
        split: the same for an equal split.
        fixed: the same for the one arm that is best for all segments together.
    """

    decisions: int
    earned: float
    purchases: int
    profit: float
    best: float
    split: float
    fixed: float

    @property
    def regret(self) -> float:
        """True regret of what was served."""
        return self.best - self.profit

    @property
    def split_regret(self) -> float:
        """True regret that an equal split would have had on the same visits."""
        return self.best - self.split


class Lag(NamedTuple):
    """Seconds from an outcome's receipt to the first decision by a policy that had learnt it."""

    median: float
    p95: float
    outcomes: int


def totals(
    engine: Engine, world: simulate.World, campaign: str, *, after: int = 0, until: int = 2**62
) -> Totals:
    """Return the sums over the randomised decisions number ``after + 1`` to ``until``."""
    query = text(TOTALS).bindparams(*_truth(world))
    values = {"campaign": campaign, "after": after, "until": until}
    with engine.connect() as connection:
        row = connection.execute(query, values).one()
    return Totals(*row)


def counts(engine: Engine, campaign: str) -> tuple[int, int]:
    """Return all decisions in the log, and how many of them were of the holdout."""
    with engine.connect() as connection:
        row = connection.execute(COUNTS, {"campaign": campaign}).one()
    return row.decisions, row.holdout


def settle(
    engine: Engine,
    campaign: str,
    *,
    decisions: int,
    outcomes: int,
    timeout_seconds: float = 60.0,
    wait: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until Postgres holds what was acknowledged and the learner has learnt all of it.

    Returns whether that came to pass within the time.
    """  # fmt: skip
    values = {"campaign": campaign, "decisions": decisions, "outcomes": outcomes}
    return _until(engine, SETTLED, values, timeout_seconds, wait)


def learnt(
    engine: Engine,
    campaign: str,
    *,
    decision: str,
    event: str | None,
    timeout_seconds: float,
    wait: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until the learner has learnt one decision and one outcome; tell whether it has."""
    values = {"campaign": campaign, "decision": decision, "event": event}
    return _until(engine, LEARNT, values, timeout_seconds, wait)


def _until(
    engine: Engine,
    question: TextClause,
    values: dict[str, Any],
    timeout_seconds: float,
    wait: Callable[[float], None],
) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while True:
        with engine.connect() as connection:
            if connection.scalar(question, values):
                return True
        if time.monotonic() > deadline:
            return False
        wait(0.05)


def lag(engine: Engine, campaign: str) -> Lag | None:
    """Return how long rewards took to change the probabilities that visitors were served with.

    For every purchase: the first snapshot that had learnt it, and the first decision that any
    serving process drew from that snapshot or a later one. Waiting for the next visitor counts.
    """
    with engine.connect() as connection:
        outcomes, snapshots, served = (
            np.array(connection.execute(query, {"campaign": campaign}).all(), np.float64)
            for query in (OUTCOMES, SNAPSHOTS, SERVED)
        )
    if not (outcomes.size and snapshots.size and served.size):
        return None
    seconds = lags(outcomes, snapshots, served)
    if not seconds.size:
        return None
    return Lag(float(np.median(seconds)), float(np.quantile(seconds, 0.95)), seconds.size)


def lags(
    outcomes: NDArray[np.float64], snapshots: NDArray[np.float64], served: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the seconds of every outcome whose lesson was served at all.

    Args:
        outcomes: (N, 2) position, time received.
        snapshots: (M, 2) version, position of the last outcome learnt, both ascending.
        served: (P, 2) version, time it was first served, by ascending version.
    """
    place = np.searchsorted(snapshots[:, 1], outcomes[:, 0], side="left")
    learnt = place < len(snapshots)
    version = snapshots[place[learnt], 0]
    # The earliest time at which this version or any later one was served.
    earliest = np.minimum.accumulate(served[::-1, 1])[::-1]
    first = np.searchsorted(served[:, 0], version, side="left")
    seen = first < len(served)
    seconds: NDArray[np.float64] = earliest[first[seen]] - outcomes[learnt, 1][seen]
    return seconds


def _truth(world: simulate.World) -> list[BindParameter[Any]]:
    profit = simulate.profit_minor(world)
    segment, arm = np.indices(profit.shape)
    fixed = profit[:, simulate.best_fixed_arm(world)]
    each = np.ones_like(profit)
    columns = {
        "segments": segment,
        "arms": arm,
        "profits": profit,
        "bests": profit.max(axis=1)[:, None] * each,
        "splits": profit.mean(axis=1)[:, None] * each,
        "fixeds": fixed[:, None] * each,
    }
    return [
        bindparam(
            name,
            values.ravel().tolist(),
            type_=ARRAY(Integer if values.dtype.kind == "i" else Double),
        )
        for name, values in columns.items()
    ]
