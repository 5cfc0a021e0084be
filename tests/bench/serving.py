"""How long a durable decision takes, beside an empty Flask view under the same server.

Both are asked by the same clients over keep-alive connections, in turns, in one run; the clients
share the machine with the servers, so quote the ratio. `make bench-serving` runs it::

    python -m tests.bench.serving --seconds 5 --rounds 5 --connections 16
"""

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flask
from flask import Flask

from service import campaigns, db, keys
from service.cli import WEB_THREADS
from service.config import Config
from service.supervisor import Barter
from tests.loop import definition

Request = tuple[str, str, dict[str, str]]


class Sample(NamedTuple):
    """One round: requests answered per second, and latencies in milliseconds."""

    per_second: float
    p50: float
    p99: float


def hello() -> Flask:
    """Return an app whose one view answers a JSON POST with a little JSON."""
    app = Flask("hello")

    @app.post("/hello")
    def view() -> dict[str, str]:
        return {"hello": flask.request.get_json()["name"]}

    return app


def ask(port: int, request: Request, seconds: float) -> list[float]:
    """Repeat a request on one connection; return the latencies in seconds."""
    path, body, headers = request
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    latencies = []
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{path} answered {reply.status}")
        latencies.append(time.perf_counter() - started)
    return latencies


def measure(port: int, request: Request, *, connections: int, seconds: float) -> Sample:
    """Ask over several connections at once, each in a process of its own."""
    with multiprocessing.get_context("fork").Pool(connections) as pool:
        found = pool.starmap(ask, [(port, request, seconds)] * connections)
    latencies = sorted(1000 * one for some in found for one in some)
    return Sample(
        len(latencies) / seconds,
        statistics.median(latencies),
        latencies[int(0.99 * len(latencies))],
    )


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def server(port: int) -> subprocess.Popen[bytes]:
    """Start the empty view under the same server, workers and threads as Barter's."""
    command = [
        sys.executable, "-m", "granian", "--interface", "wsgi", "--factory", "--port", str(port),
        "--workers", "2", "--blocking-threads", str(WEB_THREADS), "--no-access-log",
        "tests.bench.serving:hello",
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return child
        time.sleep(0.05)
    raise RuntimeError("the empty view did not start")


def row(name: str, samples: Sequence[Sample]) -> str:
    """Return a line of the table: medians over the rounds."""
    values = [statistics.median(column) for column in zip(*samples, strict=True)]
    return "| {} | {:,.0f} | {:.1f} | {:.1f} |".format(name, *values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--connections", type=int, default=16, help="at once (default 16)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode(), port=free_port())
        with Barter(config, quiet=True) as barter:
            engine = db.engine(barter.database_url)
            with db.transaction(engine) as session:
                campaigns.create(session, definition(), actor="bench")
                campaigns.transition(session, "spring", "launch", actor="bench")
                _, key = keys.create(session, name="bench", scopes=["decide"], actor="bench")
            engine.dispose()
            time.sleep(2)
            headers = {"Content-Type": "application/json"}
            decision: Request = (
                "/v1/decisions",
                json.dumps({"campaign": "spring", "unit": "ana", "attributes": {"visits": 3}}),
                headers | {"Authorization": f"Bearer {key}"},
            )
            empty: Request = ("/hello", '{"name": "world"}', headers)
            port = free_port()
            beside = server(port)
            kinds = {"durable decision": (config.port, decision), "empty view": (port, empty)}
            found: dict[str, list[Sample]] = {name: [] for name in kinds}
            for _ in range(chosen.rounds):
                for name, (where, request) in kinds.items():
                    found[name].append(
                        measure(
                            where, request, connections=chosen.connections, seconds=chosen.seconds
                        )
                    )
            beside.terminate()
            beside.wait()
    print(f"{chosen.connections} connections, medians of {chosen.rounds} rounds\n")
    print("| what | requests/s | p50 ms | p99 ms |\n|-|-:|-:|-:|")
    for name, samples in found.items():
        print(row(name, samples))
    ratios = [
        one.per_second / other.per_second
        for one, other in zip(found["durable decision"], found["empty view"], strict=True)
    ]
    print(f"\ndurable decision ÷ empty view: {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
