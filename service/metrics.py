"""What Prometheus reads at ``/metrics``.

Several web processes serve one host. They share their counts through the folder that the
environment variable ``PROMETHEUS_MULTIPROC_DIR`` names: the supervisor makes it, empty, before it
starts them; then any process answers with the sum over all. Without it a process answers for
itself, which is right where there is only one.
"""

import bisect
import os
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.messages import DecisionReply, OutcomeReceipt

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SHARED_BYTES = 1 << 20


def reserve() -> None:
    """Take the room on the disk for this process's shared counts, before anything is counted.

    They are memory that a file backs: where a disk that has filled up cannot, the system ends the
    process. A megabyte is enough for thousands of labels.
    """
    if folder := os.environ.get(FOLDER_VARIABLE):
        for kind in ("counter", "histogram"):
            with open(f"{folder}/{kind}_{os.getpid()}.db", "a+b") as file:
                os.posix_fallocate(file.fileno(), 0, SHARED_BYTES)


reserve()
REGISTRY = CollectorRegistry()
DECISIONS = Counter(
    "bandit_decisions",
    "Decisions that were answered, by campaign, arm and reason.",
    ["campaign", "arm", "reason"],
    registry=REGISTRY,
)
OUTCOMES = Counter(
    "bandit_outcomes",
    "Outcome events that were taken, by whether they were new.",
    ["result"],
    registry=REGISTRY,
)
LATE = Counter(
    "bandit_late_acknowledgements",
    "Entries whose caller was told that they are on this host's disk only, or to try again.",
    registry=REGISTRY,
)


class Times(Histogram):
    """A histogram that takes many observations for little more than the price of one."""

    def observe_all(self, seconds: Sequence[float]) -> None:
        """Add observations."""
        self._sum.inc(sum(seconds))
        found = Tally(bisect.bisect_left(self._upper_bounds, one) for one in seconds)
        for bucket, number in found.items():
            self._buckets[bucket].inc(number)


SECONDS = Times(
    "bandit_request_seconds",
    "Time from a request's arrival to its reply, by operation and status.",
    ["operation", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 3.0),
    registry=REGISTRY,
)


@cache
def _decisions(campaign: str, arm: str, reason: str) -> Counter:
    return DECISIONS.labels(campaign, arm, reason)


@cache
def _seconds(operation: str, status: int) -> Times:
    return SECONDS.labels(operation, status)


class Tallied:
    """What one thread counts, to be added up for all to see a few times a second (`flush`)."""

    def __init__(self) -> None:
        self._decisions: Tally[tuple[str, str, str]] = Tally()
        self._seconds: dict[tuple[str, int], list[float]] = {}

    def decision(self, campaign: str, arm: str, reason: str) -> None:
        """Count one decision that was answered."""
        self._decisions[campaign, arm, reason] += 1

    def observe(self, operation: str, status: int, seconds: float) -> None:
        """Measure how long a request took."""
        self._seconds.setdefault((operation, status), []).append(seconds)

    def flush(self) -> None:
        """Add it up."""
        for labels, number in self._decisions.items():
            _decisions(*labels).inc(number)
        for request, seconds in self._seconds.items():
            _seconds(*request).observe_all(seconds)
        self._decisions.clear()
        self._seconds.clear()


def count_decision(campaign: str, arm: str, reason: str) -> None:
    """Count one decision that was answered."""
    _decisions(campaign, arm, reason).inc()


def observe(operation: str, status: int, seconds: float) -> None:
    """Measure how long a request took."""
    _seconds(operation, status).observe(seconds)


def count_decisions(replies: Iterable[DecisionReply]) -> None:
    """Count decisions that were answered."""
    count_tally(Tally((reply.campaign, reply.arm, reply.reason) for reply in replies))


def count_tally(tally: Mapping[tuple[str, str, str], int]) -> None:
    """Count decisions that were answered, by (campaign, arm, reason)."""
    for labels, number in tally.items():
        _decisions(*labels).inc(number)


def count_outcomes(receipt: OutcomeReceipt) -> None:
    """Count outcome events that were taken."""
    OUTCOMES.labels("accepted").inc(receipt.accepted)
    OUTCOMES.labels("duplicate").inc(receipt.duplicates)


def exposition() -> bytes:
    """Return all figures in Prometheus' text format."""
    if FOLDER_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
