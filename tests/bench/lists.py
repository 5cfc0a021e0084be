"""How many durable decisions a second come in lists, beside single requests, in one run.

Lists of 1,000 in JSON and in Arrow, of 10,000 in Arrow, of a campaign without features and of one
that decides by them (``linear_thompson``); single requests of the same campaigns. All by the same
generator (`tests.bench.load`), in turns; every answer is 200 and on disk before it is read. The
bodies are made beforehand, and the answers not parsed. Everything shares the machine, so quote the
ratios::

    python -m tests.bench.lists --seconds 3 --rounds 5
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine

from service import arrow, db, queries
from service.config import Config
from service.spool import Spool
from service.supervisor import Barter
from tests.bench import load
from tests.bench.load import Request, Sample
from tests.bench.serving import CAMPAIGNS, FEATURES, free_port, launch

LISTS = {"JSON, 1,000": 1_000, "Arrow, 1,000": 1_000, "Arrow, 10,000": 10_000}
SINGLE = "single"


def table(key: str, rows: int) -> bytes:
    """Return a table of requests."""
    columns: dict[str, Any] = {
        "campaign": pa.array([key] * rows).dictionary_encode(),
        "unit": [f"customer-{row}" for row in range(rows)],
    }
    for place in range(FEATURES):
        columns[f"visits_{place}"] = pa.array([float(row % 13 + place) for row in range(rows)])
    sink = pa.BufferOutputStream()
    made = pa.table(columns)
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    out: bytes = sink.getvalue().to_pybytes()
    return out


def asked(campaign: str, row: int) -> dict[str, Any]:
    """Return one request."""
    attributes = {f"visits_{place}": float(row % 13 + place) for place in range(FEATURES)}
    return {"campaign": campaign, "unit": f"customer-{row}", "attributes": attributes}


def requests(key: str, campaign: str) -> dict[str, tuple[int, Request]]:
    """Return a request of each kind, with how many decisions it asks for."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    tables = headers | {"Content-Type": arrow.MEDIA}
    made: dict[str, tuple[int, Request]] = {
        SINGLE: (1, ("/v1/decisions", json.dumps(asked(campaign, 1)).encode(), headers))
    }
    for name, rows in LISTS.items():
        if name.startswith("JSON"):
            listed = {"decisions": [asked(campaign, row) for row in range(rows)]}
            body = json.dumps(listed, separators=(",", ":")).encode()
            made[name] = rows, ("/v1/decisions", body, headers)
        else:
            made[name] = rows, ("/v1/decisions", table(campaign, rows), tables)
    return made


def measured(port: int, request: Request, connections: int, seconds: float) -> Sample:
    """Ask as fast as answers come; where none comes in the round, that is its figure."""
    try:
        return load.closed(port, request, connections=connections, seconds=seconds)
    except statistics.StatisticsError:
        return Sample(0.0, 1e3 * seconds, 1e3 * seconds, 0.0)


def _warm(port: int, key: str, names: Sequence[str]) -> None:
    """Let the campaigns learn from a thousand decisions: next to nothing is known before."""
    for name in names:
        _, (path, body, headers) = requests(key, CAMPAIGNS[name]["key"])["JSON, 1,000"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, body, headers)
        if connection.getresponse().status != 200:
            raise RuntimeError("a list was refused")
        connection.close()
    time.sleep(5)


def wait_until_carried(spool: Spool, engine: Engine) -> None:
    """Wait until PostgreSQL has all decisions, so that none is measured beside another's."""
    while True:
        with engine.connect() as connection:
            if (connection.scalar(queries.SHIPPED, {"id": spool.id}) or 0) >= spool.last():
                return
        time.sleep(0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--connections", type=int, default=64, help="of single requests (64)")
    parser.add_argument("--lists", type=int, default=8, help="connections of lists (8)")
    parser.add_argument("--only", default="plain contextual", help="campaigns (both)")
    chosen = parser.parse_args(arguments)
    names = [one for one in CAMPAIGNS if CAMPAIGNS[one]["key"] in chosen.only.split()]
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode(), port=free_port())
        with Barter(config, quiet=True) as barter:
            key = launch(barter.database_url)
            time.sleep(5)
            _warm(config.port, key, names)
            spool, engine = Spool(config.data), db.engine(barter.database_url)
            found: dict[tuple[str, str], list[Sample]] = {}
            for _ in range(chosen.rounds):
                for name in names:
                    for kind, (rows, request) in requests(key, CAMPAIGNS[name]["key"]).items():
                        connections = chosen.connections if kind == SINGLE else chosen.lists
                        wait_until_carried(spool, engine)
                        sample = measured(config.port, request, connections, chosen.seconds)
                        sample = sample._replace(per_second=sample.per_second * rows)
                        found.setdefault((name, kind), []).append(sample)
    print(f"medians of {chosen.rounds} rounds; lists on {chosen.lists} connections\n")
    print("| campaign | request | decisions/s | ÷ single | p99 ms | generator |\n|-|-|-:|-:|-:|-:|")
    for (name, kind), samples in found.items():
        pairs = zip(samples, found[name, SINGLE], strict=True)
        ratio = statistics.median(one.per_second / two.per_second for one, two in pairs)
        values = [statistics.median(column) for column in zip(*samples, strict=True)]
        print(
            f"| {name} | {kind} | {values[0]:,.0f} | {ratio:.1f} | {values[2]:.0f}"
            f" | {values[3]:.0%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
