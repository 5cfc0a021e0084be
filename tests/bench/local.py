"""What a decision in the caller's own process costs, and that it is the server's.

Two campaigns of ten arms that have learnt from traffic: one by Beta posteriors, one linear over
64 features with exact probabilities. First the same random requests (units, features, arms left
out) are answered by the server's code over the server's local log, by the server over HTTP, and by
a `LocalClient`; every field of every answer must agree, and the server must take all that was
decided elsewhere. Then single decisions are timed, in processor time, which other processes disturb
less than the clock: of the calling thread, to the moment that the caller has its decision and the
log has its entry in memory, and of the whole process, with the log written::

    python -m tests.bench.local --requests 100000 --http 5000

A loop of 1,000 additions and products is timed beside it: on an idle core of the machine that
`BENCHMARKS.md` is of, it takes 40 us.
"""

import argparse
import contextlib
import datetime as dt
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service import campaigns, db, decide, embedded, keys
from service.client import Ask, Client, Decision, LocalClient
from service.config import Config
from service.definition import CampaignDefinition
from service.learner import learn
from service.messages import DecisionReply, DecisionRequest, OutcomeRequest, PlainRequest
from service.outcomes import record
from tests.bench.serving import free_port
from tests.loop import Loop, running

ARMS, FEATURES, LIST = 10, 64, 1_000
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "beta": {"policy": {"name": "thompson_beta"}},
    "linear": {"policy": {"name": "linear_thompson"}, "features": [
        {"kind": "number", "key": f"f{place}", "name": f"Feature {place}"}
        for place in range(FEATURES)
    ]},
}  # fmt: skip
NAMES = ("decision_id", "campaign", "arm", "offer", "propensity", "reason", "segment", "snapshot")
TRAFFIC = 3_000


def plan(key: str) -> dict[str, Any]:
    """Return the definition of a campaign."""
    arms = [{"key": "none", "name": "None", "offer": {"kind": "none"}}]
    arms += [
        {"key": f"p{n}", "name": f"{n} %", "offer": {"kind": "percentage", "percent": n}}
        for n in range(1, ARMS)
    ]
    fixed = {"key": key, "name": key, "arms": arms, "default_arm": "none", "segments": []}
    return {**fixed, "objective": "conversion", "holdout": 0.05, **CAMPAIGNS[key]}


def asks(key: str, count: int, rng: random.Random, *, ids: bool = True) -> list[Ask]:
    """Return random requests."""
    width = len(CAMPAIGNS[key].get("features", ()))
    return [
        Ask(
            key,
            f"unit-{rng.randrange(1_000_000)}",
            {f"f{place}": round(rng.gauss(0, 1), 4) for place in range(width)},
            (f"p{rng.randrange(1, ARMS)}",) if ids and rng.random() < 0.05 else (),
            f"{key}-{rng.getrandbits(96):x}" if ids else None,
        )
        for _ in range(count)
    ]


def as_request(ask: Ask) -> DecisionRequest:
    """Return the same as the server reads it."""
    told = {name: value for name, value in ask._asdict().items() if value is not None}
    return DecisionRequest.model_validate(told)


def learnt(loop: Loop, rng: random.Random) -> str:
    """Launch the campaigns, send some traffic, learn from it; return an API key."""
    with db.transaction(loop.engine) as session:
        numbers = []
        for key in CAMPAIGNS:
            wanted = CampaignDefinition.model_validate(plan(key))
            numbers.append(campaigns.create(session, wanted, actor="bench").id)
            campaigns.transition(session, key, "launch", actor="bench")
        scopes = ["local", "decide", "reward"]
        api_key = keys.create(session, name="bench", scopes=scopes, actor="bench")[1]
    loop.carry()
    for key in CAMPAIGNS:
        for start in range(0, TRAFFIC, LIST):
            replies = decide.decide(loop.runtime, [as_request(a) for a in asks(key, LIST, rng)])
            bought = [one for one in replies if rng.random() < 0.1 + 0.01 * len(one.arm)]
            record(loop.runtime, [
                OutcomeRequest(event_id=f"{key}-{start}-{place}", decision_id=one.decision_id,
                               kind="purchased", revenue_minor=3000)
                for place, one in enumerate(bought)
            ])  # fmt: skip
    loop.carry()
    for number in numbers:
        while learn(loop.engine, number, backend="numpy") is not None:
            pass
    loop.carry()
    return api_key


@contextmanager
def prepared(workers: int = 1) -> Iterator[tuple[Loop, str, str]]:
    """Give a host whose campaigns have learnt, with web workers: the loop, address and API key."""
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode(),
                        port=free_port(), workers=workers)  # fmt: skip
        url = embedded.start(config)
        try:
            db.migrate(url)
            found = Config(data=config.data, secret=config.secret, database_url=url,
                           port=config.port, workers=workers)  # fmt: skip
            engine = db.engine(url)
            with running(found, engine) as loop:
                api_key = learnt(loop, random.Random(1))
                with serving(found):
                    yield loop, f"http://127.0.0.1:{found.port}", api_key
            engine.dispose()
        finally:
            embedded.stop(config)


@contextmanager
def serving(config: Config) -> Iterator[None]:
    """Run web workers, without a learner or a carrier: what they serve from does not change."""
    environment = os.environ | config.environment()
    command = [sys.executable, "-m", "service.cli", "web"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def client(address: str, api_key: str, folder: Path, **options: Any) -> LocalClient:
    """Return a client that has heard of all campaigns."""
    made = LocalClient(address, api_key, list(CAMPAIGNS), folder=folder, **options)
    if not made.ready(60):
        raise RuntimeError("the web workers did not start")
    return made


def differing(local: Sequence[Decision], other: Sequence[Any], told: Callable[[Any], Any]) -> int:
    """Return in how many pairs a field differs."""
    pairs = zip(local, other, strict=True)
    return sum(any(getattr(one, name) != told(two)[name] for name in NAMES) for one, two in pairs)


def identical(
    loop: Loop, barter: LocalClient, server: Client, *, requests: int, http: int
) -> tuple[int, int, int]:
    """Return how many answers were compared in process and over HTTP, and how many differed."""
    rng, in_process, over_http, differ = random.Random(2), 0, 0, 0

    def as_told(reply: DecisionReply) -> dict[str, Any]:
        return reply.model_dump(mode="json")

    while in_process < requests or over_http < http:
        for key in CAMPAIGNS:
            compared_over_http = over_http < http
            given = asks(key, min(LIST, http) if compared_over_http else LIST, rng)
            mine = barter.decide_many(given)
            if any(one.is_default for one in mine):
                raise RuntimeError(f"not decided here: {mine[0].error}")
            if compared_over_http:
                # One by one: lists by features are computed together, to the eighth digit.
                theirs = [server.decide(*ask[:3], exclude_arms=ask.exclude_arms,
                                        request_id=ask.request_id) for ask in given]  # fmt: skip
                differ += differing(mine, theirs, Decision._asdict)
                over_http += len(given)
            else:
                replies = decide.decide(loop.runtime, [as_request(ask) for ask in given])
                differ += differing(mine, replies, as_told)
                in_process += LIST
    return in_process, over_http, differ


def timed(barter: LocalClient, key: str, *, rounds: int, size: int) -> tuple[list[float], float]:
    """Return microseconds of each round's calls for the caller, and of all threads together."""
    given = [(one.unit, one.attributes or None)
             for one in asks(key, size, random.Random(3), ids=False)]  # fmt: skip
    spent: list[float] = []
    whole = time.process_time()
    for _ in range(rounds):
        begun = time.thread_time()
        for unit, attributes in given:
            barter.decide(key, unit, attributes)
        spent.append((time.thread_time() - begun) / size * 1e6)
        while barter.status().pending > 10_000:
            time.sleep(0.01)
    while barter.status().pending:
        time.sleep(0.01)
    return spent, (time.process_time() - whole) / (rounds * size) * 1e6


def core(loop: Loop, key: str, *, rounds: int, size: int) -> list[float]:
    """Return microseconds per decision and log entry of the server's own code."""
    given = [PlainRequest(key, one.unit, dict(one.attributes))
             for one in asks(key, size, random.Random(3), ids=False)]  # fmt: skip
    spent = []
    for _ in range(rounds):
        begun = time.thread_time()
        for request in given:
            decide.draft(loop.runtime, request, dt.datetime.now(dt.UTC)).entry()
        spent.append((time.thread_time() - begun) / size * 1e6)
    return spent


def yardstick(rounds: int) -> list[float]:
    """Return microseconds of a fixed piece of work, which tells how busy the machine is."""
    spent = []
    for _ in range(rounds):
        begun, total = time.thread_time(), 0
        for number in range(1000):
            total += number * number
        spent.append((time.thread_time() - begun) * 1e6)
    return spent


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="in process (100,000)")
    parser.add_argument("--http", type=int, default=5_000, help="over HTTP (5,000)")
    parser.add_argument("--rounds", type=int, default=300, help="timed, for each kind (300)")
    chosen = parser.parse_args(arguments)
    with prepared() as (loop, address, api_key), tempfile.TemporaryDirectory() as folder:
        server = Client(address, api_key, timeout=60)
        closing = contextlib.closing(server)
        with closing, client(address, api_key, Path(folder) / "compared", timeout=60) as barter:
            in_process, over_http, differ = identical(
                loop, barter, server, requests=chosen.requests, http=chosen.http
            )
            taken = barter.flush(600) and barter.status().refused == 0
        print(f"{in_process:,} answers compared in process, {over_http:,} over HTTP: "
              f"{differ} differ; the server took all: {'yes' if taken else 'NO'}\n")  # fmt: skip
        print("| us of processor time | best round | median | all threads, log written |")
        print("|-|-:|-:|-:|")
        with client(address, api_key, Path(folder) / "timed", acknowledge="memory") as barter:
            for key, size in (("beta", 100), ("linear", 20)):
                spent, whole = timed(barter, key, rounds=chosen.rounds, size=size)
                print(f"| {key}, LocalClient | {min(spent):.1f} | {statistics.median(spent):.1f} "
                      f"| {whole:.1f} |")  # fmt: skip
                spent = core(loop, key, rounds=chosen.rounds, size=size)
                print(f"| {key}, the server's decision and log entry | {min(spent):.1f} "
                      f"| {statistics.median(spent):.1f} | |")  # fmt: skip
        spent = yardstick(chosen.rounds)
        print(f"| yardstick | {min(spent):.1f} | {statistics.median(spent):.1f} | |")
    return 0 if taken and not differ else 1


if __name__ == "__main__":
    sys.exit(main())
