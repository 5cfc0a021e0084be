"""How many durable decisions a second, beside an empty Flask view under the same server.

Decisions are asked of five campaigns: one without features, one that declares eight and logs them,
two that choose by eight and by 64, and one whose arms have rules on the product that every request
names; of two of them once more under an id of the SDK's making, a new one each time.
The empty view is served as Barter's pages are, and once more by Granian's WSGI. All are
asked by one generator over keep-alive connections (`tests.bench.load`), in turns, in one run, first
as fast as they answer, then the plain ones at half of that. With few connections a durable decision
waits for the disk while processors are idle; so each kind is asked with several numbers of them,
every round, and the round's figure is its best: what a host can do. Everything shares the machine,
so quote the ratios. `make bench-serving` runs it::

    python -m tests.bench.serving --seconds 5 --rounds 5 --connections 64 192

With ``--acknowledge database`` decisions are answered once PostgreSQL, on the same machine, has
committed them.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import flask
import msgspec
from flask import Flask
from sqlalchemy import func, update

from service import campaigns, db, keys, webserver
from service.client.sdk import ONCE
from service.config import Acknowledge, Config
from service.imports import load as stored
from service.listener import INHERITED, MAX_CONNECTIONS
from service.models import Product
from service.supervisor import Barter
from tests.bench import load
from tests.bench.load import Request, Sample
from tests.loop import DEFINITION, definition

FEATURES, WIDE = 8, 64
PRODUCTS = 10_000
AS_SDK = "{}, as the SDK asks"
PLAIN, EMPTY = "durable decision", "empty view"
WORKERS = 2
PAUSE_SECONDS = 2.0
"""Before each round: what one leaves to be carried and learnt is not the next one's burden."""
WSGI = "... by Granian's own WSGI, 4 threads"
CAMPAIGNS: dict[str, dict[str, Any]] = {
    PLAIN: {"key": "plain"},
    f"... that logs {FEATURES} features": {"key": "logged", "features": FEATURES},
    f"... linear_thompson over {FEATURES} features": {
        "key": "contextual", "features": FEATURES, "policy": {"name": "linear_thompson"},
    },
    f"... linear_thompson over {WIDE} features, 10 arms": {
        "key": "wide", "features": WIDE, "policy": {"name": "linear_thompson"}, "arms": [
            DEFINITION["arms"][0],
            *({"key": f"p{n}", "name": f"{n} %", "offer": {"kind": "percentage", "percent": n}}
              for n in range(1, 10)),
        ],
    },
    "... with rules on the product it names": {"key": "product", "arms": [
        DEFINITION["arms"][0],
        *(arm | {"only_if": [{"attribute": "product_stock_cover_days", "op": ">", "value": 60}]}
          for arm in DEFINITION["arms"][1:]),
    ]},
}  # fmt: skip


class Hello(msgspec.Struct):
    """What the empty view is sent."""

    name: str


def empty() -> Flask:
    """Return an app whose one view answers a JSON POST with a little JSON."""
    app = Flask("hello")
    decode = msgspec.json.Decoder(Hello).decode

    @app.post("/hello")
    def view() -> flask.Response:
        found = decode(flask.request.get_data(cache=False))
        return flask.Response(
            msgspec.json.encode({"hello": found.name}), mimetype="application/json"
        )

    return app


def serve_empty() -> None:
    """Be a worker that serves the empty view as Barter's are served."""
    listener = socket.socket(fileno=int(os.environ[INHERITED]))
    webserver.serve(empty(), {}, listener)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def ours(port: int) -> list[subprocess.Popen[bytes]]:
    """Serve the empty view by as many of our workers as Barter has."""
    listener = socket.create_server(("127.0.0.1", port), backlog=MAX_CONNECTIONS)
    environment = os.environ | {INHERITED: str(listener.fileno())}
    command = [sys.executable, "-c", "from tests.bench.serving import serve_empty; serve_empty()"]
    with listener:
        return [
            subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()])
            for _ in range(WORKERS)
        ]


def granian(port: int) -> list[subprocess.Popen[bytes]]:
    """Serve it by as many of Granian's, each with four threads."""
    command = [
        sys.executable, "-m", "granian", "--interface", "wsgi", "--factory", "--port", str(port),
        "--workers", str(WORKERS), "--blocking-threads", "4", "--no-access-log",
        "tests.bench.serving:empty",
    ]  # fmt: skip
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]


def until_it_answers(port: int) -> None:
    """Wait until somebody listens on a port and answers."""
    for _ in range(1200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("POST", "/hello", '{"name": "world"}')
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the empty view did not start")


def row(name: str, samples: Sequence[Sample]) -> str:
    """Return a line of the table: medians over the rounds."""
    values = [statistics.median(column) for column in zip(*samples, strict=True)]
    return "| {} | {:,.0f} | {:.1f} | {:.1f} | {:.0%} |".format(name, *values)


def launch(url: str) -> str:
    """Launch the campaigns; return an API key that may ask them."""
    engine = db.engine(url)
    stored.products(engine, [stored.ProductRow(f"p{n}", None, "Tea", None, 499, None, 9)
                           for n in range(PRODUCTS)])  # fmt: skip
    with db.transaction(engine) as session:
        session.execute(update(Product).values(pace=0.1, pace_at=func.now()))
    with db.transaction(engine) as session:
        for changes in CAMPAIGNS.values():
            features = [
                {"kind": "number", "key": f"visits_{place}", "name": f"Visits {place}", "scale": 3}
                for place in range(changes.get("features", 0))
            ]
            plan = definition(**changes | {"features": features})
            campaigns.create(session, plan, actor="bench")
            campaigns.transition(session, plan.key, "launch", actor="bench")
        _, key = keys.create(session, name="bench", scopes=["decide"], actor="bench")
    engine.dispose()
    return key


def requests(key: str) -> dict[str, Request]:
    """Return one request for each campaign: all of the same size, but for the wide one."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def attributes(count: int) -> dict[str, int]:
        return {f"visits_{place}": place % 7 for place in range(count)}

    made: dict[str, Request] = {}
    for name, changes in CAMPAIGNS.items():
        width = max(FEATURES, changes.get("features", 0))
        asked = {"campaign": changes["key"], "unit": "ana", "product": "p77",
                 "attributes": attributes(width)}  # fmt: skip
        made[name] = ("/v1/decisions", json.dumps(asked), headers)
        if changes["key"] in ("plain", "wide"):
            asked["request_id"] = ONCE + load.FRESH
            made[AS_SDK.format(name)] = ("/v1/decisions", json.dumps(asked), headers)
    return made


def best(port: int, request: Request, connections: Sequence[int], *, seconds: float) -> Sample:
    """Ask with each number of connections in turn; return what went fastest."""
    samples = []
    for number in connections:
        time.sleep(PAUSE_SECONDS)
        samples.append(load.closed(port, request, connections=number, seconds=seconds))
    return max(samples, key=lambda one: one.per_second)


def ratio(found: dict[str, list[Sample]], name: str, other: str) -> float:
    """Return the median over the rounds of one kind's requests per second over another's."""
    pairs = zip(found[name], found[other], strict=True)
    return statistics.median(one.per_second / two.per_second for one, two in pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind (default 5)")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 192],
                        help="at once; each kind's best counts (default 64 192)")  # fmt: skip
    parser.add_argument("--acknowledge", choices=get_args(Acknowledge), default="disk")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(
            data=Path(folder),
            secret=os.urandom(32).hex().encode(),
            port=free_port(),
            workers=WORKERS,
            acknowledge=chosen.acknowledge,
        )
        with Barter(config, quiet=True) as barter:
            asked = requests(launch(barter.database_url))
            time.sleep(5)
            ports = free_port(), free_port()
            beside = [*ours(ports[0]), *granian(ports[1])]
            for port in ports:
                until_it_answers(port)
            kinds = {name: (config.port, request) for name, request in asked.items()}
            headers = {"Content-Type": "application/json"}
            for name, port in zip((EMPTY, WSGI), ports, strict=True):
                kinds[name] = (port, ("/hello", '{"name": "world"}', headers))
            found: dict[str, list[Sample]] = {name: [] for name in kinds}
            for _ in range(chosen.rounds):
                for name, (where, request) in kinds.items():
                    found[name].append(
                        best(where, request, chosen.connections, seconds=chosen.seconds)
                    )
            halves = {
                name: [
                    load.opened(
                        *kinds[name], connections=256, seconds=chosen.seconds,
                        rate=statistics.median(one.per_second for one in found[name]) / 2,
                    )
                    for _ in range(chosen.rounds)
                ]
                for name in (PLAIN, EMPTY)
            }  # fmt: skip
            for child in beside:
                child.terminate()
                child.wait()
    tried = " or ".join(map(str, chosen.connections))
    print(f"acknowledged: {chosen.acknowledge}, {tried} connections,"
          f" medians of {chosen.rounds} rounds\n")  # fmt: skip
    print("| what | requests/s | p50 ms | p99 ms | generator |\n|-|-:|-:|-:|-:|")
    for name, samples in found.items():
        print(row(name, samples))
    for name, samples in halves.items():
        print(row(f"{name}, at half of that", samples))
    for other in (EMPTY, WSGI):
        print(f"\n{PLAIN} ÷ {other}: {ratio(found, PLAIN, other):.2f}")
    for name in asked:
        if name != PLAIN:
            print(f"{name} ÷ {PLAIN}: {ratio(found, name, PLAIN):.2f},"
                  f" ÷ {EMPTY}: {ratio(found, name, EMPTY):.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
