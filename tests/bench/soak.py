"""Half an hour at seven tenths of what a host can do: what grows, and what does not.

Clients ask at a fixed rate, and their wait counts from when a request was due. Every minute is a
row: latencies, and of every process its memory, open files and connections to PostgreSQL::

    python -m tests.bench.soak --minutes 30 --connections 64

It ends with an error if the last third uses more of anything than the third before by more than
5 % (memory) or 10 (files, connections), or if its p99 is more than twice as long.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, text

from service import db
from service.config import Config
from service.supervisor import Barter
from tests.acceptance.clients import web_workers
from tests.bench import load
from tests.bench.serving import PLAIN, free_port, launch, requests

SHARE = 0.7
PAGE_KILOBYTES = os.sysconf("SC_PAGE_SIZE") // 1024
MEGABYTE = 1024


class Minute(NamedTuple):
    """One row: latencies in ms, resident megabytes by process, and what is open."""

    per_second: float
    p50: float
    p99: float
    memory: dict[str, float]
    files: int
    connections: int


def processes(barter: Barter) -> dict[str, list[int]]:
    """Return the process ids of every part; those of the web workers together."""
    found = {name: [pid] for name, pid in barter.pids().items()}
    return found | {"workers": web_workers(found["web"][0])}


def resident(pid: int) -> float:
    """Return a process's resident memory in megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KILOBYTES / MEGABYTE


def minute(barter: Barter, engine: Engine, sample: load.Sample) -> Minute:
    """Return a row."""
    found = processes(barter)
    every = [pid for pids in found.values() for pid in pids]
    with engine.connect() as connection:
        connections = connection.scalar(text("SELECT count(*) FROM pg_stat_activity"))
    return Minute(
        sample.per_second, sample.p50, sample.p99,
        {name: sum(map(resident, pids)) for name, pids in found.items()},
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in every),
        int(connections or 0),
    )  # fmt: skip


def faults(rows: Sequence[Minute]) -> list[str]:
    """Return what grew from the second third of the rows to the last."""
    third = len(rows) // 3
    before, after = rows[third : 2 * third], rows[2 * third :]
    if not third:
        return []

    def grew(name: str, values: list[list[float]], times: float, more: float) -> list[str]:
        old, new = (statistics.median(part) for part in values)
        return [f"{name}: {old:,.0f} to {new:,.0f}"] if new > old * times + more else []

    found = grew("p99", [[row.p99 for row in part] for part in (before, after)], 2, 1)
    for name in rows[0].memory:
        parts = [[row.memory[name] for row in part] for part in (before, after)]
        found += grew(f"memory of {name}", parts, 1.05, 1)
    for name in ("files", "connections"):
        found += grew(
            name, [[getattr(row, name) for row in part] for part in (before, after)], 1, 10
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a row a minute, and say what grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30, help="how long (default 30)")
    parser.add_argument("--connections", type=int, default=64, help="at once (default 64)")
    parser.add_argument("--rate", type=float, help="requests a second (default: 70 %% of the most)")
    parser.add_argument("--seconds", type=float, default=60, help="of a row (default 60)")
    chosen = parser.parse_args(arguments)
    rows: list[Minute] = []
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode(), port=free_port())
        with Barter(config, quiet=True) as barter:
            asked = requests(launch(barter.database_url))[PLAIN]
            engine = db.engine(barter.database_url)
            time.sleep(5)  # until the workers know the key and the campaign
            most = load.closed(config.port, asked, connections=chosen.connections, seconds=10)
            rate = chosen.rate or SHARE * most.per_second
            print(f"{rate:,.0f} requests/s of {most.per_second:,.0f}\n")
            print("| minute | requests/s | p50 ms | p99 ms | web MB | carry | learn | workers"
                  " | files | connections |\n|-:|-:|-:|-:|-:|-:|-:|-:|-:|-:|")  # fmt: skip
            for number in range(round(chosen.minutes * 60 / chosen.seconds)):
                sample = load.opened(
                    config.port, asked, connections=4 * chosen.connections, seconds=chosen.seconds,
                    rate=rate,
                )  # fmt: skip
                one = minute(barter, engine, sample)
                rows.append(one)
                memory = " | ".join(f"{one.memory[name]:,.0f}" for name in one.memory)
                print(f"| {number + 1} | {one.per_second:,.0f} | {one.p50:.1f} | {one.p99:.1f}"
                      f" | {memory} | {one.files} | {one.connections} |", flush=True)  # fmt: skip
            engine.dispose()
    grown = faults(rows)
    print("\n" + ("Grew: " + "; ".join(grown) if grown else "Nothing grew."))
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
