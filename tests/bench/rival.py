"""Barter beside a service of Flask, psycopg and Vowpal Wabbit, one commit per decision.

Both decide durably, on a PostgreSQL of their own with the same settings, asked in turns by one
generator. The rival (`tests.bench.rival_service`) is given the number of threads that suits it
best, which is tried first::

    python -m tests.bench.rival --seconds 5 --rounds 5 --connections 64
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from service import embedded
from service.config import Config
from service.supervisor import Barter
from tests.bench import load
from tests.bench.load import Request, Sample
from tests.bench.policies import environments
from tests.bench.serving import PLAIN, WORKERS, free_port, launch, requests, row

THREADS = (4, 8, 16, 32)
KEY = "rival-key"


@contextmanager
def rival(folder: Path, threads: int) -> Iterator[int]:
    """Serve the rival, each of its workers with so many threads; give its port."""
    config = Config(data=folder, secret=os.urandom(32).hex().encode())
    port, python = free_port(), environments.python("rival")
    environment = os.environ | {
        "RIVAL_DATABASE": embedded.start(config).replace("postgresql+psycopg", "postgresql"),
        "RIVAL_KEY": KEY,
        "RIVAL_THREADS": str(threads),
    }
    command = [
        str(python), "-m", "granian", "--interface", "wsgi", "--factory", "--port", str(port),
        "--workers", str(WORKERS), "--blocking-threads", str(threads), "--no-access-log",
        "tests.bench.rival_service:create",
    ]  # fmt: skip
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until_it_answers(port)
        yield port
    finally:
        child.terminate()
        child.wait()
        embedded.stop(config)


def _until_it_answers(port: int) -> None:
    for _ in range(1200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with closing(connection), suppress(OSError):
            connection.request("GET", "/")
            connection.getresponse()
            return
        time.sleep(0.05)
    raise RuntimeError("the rival did not start")


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as name:
        yield Path(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--connections", type=int, default=64, help="at once (default 64)")
    chosen = parser.parse_args(arguments)
    path, body, headers = requests("")[PLAIN]
    asked: Request = (path, body, headers | {"Authorization": f"Bearer {KEY}"})
    with _folder() as theirs, _folder() as mine:
        tried = {}
        for threads in THREADS:
            with rival(theirs, threads) as port:
                tried[threads] = load.closed(
                    port, asked, connections=chosen.connections, seconds=chosen.seconds
                ).per_second
        best = max(tried, key=lambda threads: tried[threads])
        print("threads a worker: " + ", ".join(f"{n} {r:,.0f}/s" for n, r in tried.items()))
        config = Config(data=mine, secret=os.urandom(32).hex().encode(), port=free_port())
        found: dict[str, list[Sample]] = {PLAIN: [], "the rival's": []}
        with Barter(config, quiet=True) as barter, rival(theirs, best) as port:
            ours = requests(launch(barter.database_url))[PLAIN]
            time.sleep(5)
            for _ in range(chosen.rounds):
                for kind, where, request in (
                    (PLAIN, config.port, ours), ("the rival's", port, asked),
                ):  # fmt: skip
                    found[kind].append(
                        load.closed(
                            where, request, connections=chosen.connections, seconds=chosen.seconds
                        )
                    )
    print(f"{chosen.connections} connections, medians of {chosen.rounds} rounds\n")
    print("| what | requests/s | p50 ms | p99 ms | generator |\n|-|-:|-:|-:|-:|")
    for kind, samples in found.items():
        print(row(kind, samples))
    pairs = zip(*found.values(), strict=True)
    ratio = statistics.median(one.per_second / two.per_second for one, two in pairs)
    print(f"\nBarter's ÷ the rival's: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
