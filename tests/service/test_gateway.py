"""The web worker as it is served: uvicorn, the hot routes, and Flask behind them."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import re
import resource
import select as waiting
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, func, select
from uvicorn.server import ServerState

from service import arrow, db, decide, keys, validation
from service.config import Config
from service.decide import earlier_fingerprint, fingerprint
from service.hot import FAILED, MAX_WAITING, Answer, Hot
from service.messages import DecisionRequest, PlainRequest
from service.models import Decision
from service.protocol import HEAD_BYTES, IDLE_SECONDS, READ_SECONDS, Protocol
from service.replay import replay
from service.segments import Segments
from tests.acceptance.clients import web_workers
from tests.bench.serving import free_port
from tests.loop import DEFINITION
from tests.web import Web, serving

OURS = re.compile(rb'[0-9a-f]{8}-[0-9a-f-]{27}|"expires_at":"[^"]*"|urn:barter:request:\w+')
"""What differs between two answers to the same question."""
MORE = 30
LEFT_OUT = {"server", "date", "x-request-id", "connection", "vary"}
"""Written by the server, or (Vary: Cookie) by a session that these routes have no use for."""


class Served:
    """A real web worker on the data folder of a loop."""

    def __init__(self, port: int, web: Web, pid: int, log: Path) -> None:
        self.port, self.web, self.pid, self.log = port, web, pid, log

    def call(
        self, method: str, path: str, body: Any = None, headers: Any = (), scope: str = "decide"
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request on a connection of its own."""
        sent: dict[str, str | None] = {"Content-Type": "application/json"}
        sent |= {"Authorization": f"Bearer {self.web.keys[scope]}"} | dict(headers)
        data = json.dumps(body) if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, data, {k: v for k, v in sent.items() if v is not None})
        reply = connection.getresponse()
        found = reply.read()
        connection.close()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, found


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


@pytest.fixture
def served(web: Web, config: Config, database_url: str, tmp_path: Path) -> Iterator[Served]:
    """Launch the campaign and serve it by one worker."""
    web.loop.launch(sticky_seconds=3600)
    here = replace(config, port=free_port(), workers=1, database_url=database_url)
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "web"],
            env=os.environ | here.environment(), stdout=log, stderr=log,
        )  # fmt: skip
    made = Served(here.port, web, child.pid, tmp_path / "log")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if made.call("GET", "/readyz")[0] == 200:
                break
        except OSError:
            time.sleep(0.1)
    yield made
    child.terminate()
    assert child.wait(30) == 0


ASK = {"campaign": "spring", "unit": "ana", "attributes": {"recency_days": 3}}
KEYED = ASK | {"unit": "bea", "request_id": "r1"}
DECISIONS: list[tuple[Any, dict[str, str | None]]] = [
    (ASK, {}),
    (ASK | {"exclude_arms": ["ten"]}, {}),
    (KEYED, {}),
    (KEYED, {}),
    (KEYED | {"unit": "carl"}, {}),
    (ASK, {"Idempotency-Key": "r2"}),
    (ASK, {"Idempotency-Key": "r2"}),
    (ASK, {"Idempotency-Key": ""}),
    (KEYED, {"Idempotency-Key": "r2"}),
    (ASK | {"campaign": "none"}, {}),
    (ASK | {"unit": ""}, {}),
    (ASK | {"unit": "a\0b"}, {}),
    (ASK | {"nobody": 1}, {}),
    ({"decisions": [ASK, ASK]}, {}),
    (b'{"campaign": "spring", "campaign": "spring", "unit": "u"}', {}),
    (b'{"campaign": "spring", "unit": "u", "attributes": {"a": 1, "a": 1}}', {}),
    (b'{"campaign" : "spring", "unit": "ana", "attributes": {"a": "\\":"}}', {}),
    (b'{"campaign": "spring", "unit": "\xff"}', {}),
    (b'{"campaign": "spring", "unit": "\\ud800"}', {}),
    (b'{"campaign": "spring", "unit": "a\x01b"}', {}),
    (b'{"campaign": "spring", "unit": "a\x7fb"}', {}),
    (b'{"campaign": "spring", "unit": null}', {}),
    (b'{"campaign": "spring", "unit": "ana", "request_id": null, "attributes": {}}', {}),
    (ASK | {"unit": "x" * 201}, {}),
    (ASK | {"attributes": {"a": "x" * 501}}, {}),
    (ASK | {"attributes": {str(n): n for n in range(65)}}, {}),
    (ASK | {"attributes": {"a": 2**53 + 1}}, {}),
    (ASK | {"attributes": {"a": 1e300, "b": [1]}}, {}),
    (ASK | {"attributes": {"a": {}}}, {}),
    (b'{"campaign": "spring", "unit": "ana", "attributes": {"a": NaN}}', {}),
    (b'{"campaign": "spring", "unit": "ana", "attributes": {"a": 1e999}}', {}),
    (b'{"campaign": "spring", "unit": "ana", "attributes": {"a": 123456789012345678901}}', {}),
    (b"[" * 5000, {}),
    (b"", {}),
    (ASK, {"Content-Type": "text/plain"}),
    (ASK, {"Content-Type": "application/json; charset=utf-8"}),
    (ASK, {"Authorization": None}),
    (ASK, {"Authorization": "Bearer bk_live_abcdefgh_" + "x" * 43}),
    (ASK, {"X-Request-Id": "a-request-of-mine"}),
]


def test_hot_routes_answer_as_flask_does(served: Served) -> None:
    """Every answer is the one that the views give alone, header by header."""
    web = served.web
    # Else the arm that is kept may be the one that a request excludes.
    web.loop.decide("ana", "a\x7fb", exclude_arms=["ten"])
    for body, headers in DECISIONS:
        status, told, found = served.call("POST", "/v1/decisions", body, headers)
        sent: dict[str, str | None] = {"Content-Type": "application/json"}
        sent |= {"Authorization": f"Bearer {web.keys['decide']}"} | headers
        expected = web.client.post(
            "/v1/decisions",
            data=json.dumps(body) if isinstance(body, dict) else body,
            headers={name: value for name, value in sent.items() if value is not None},
        )
        assert (status, OURS.sub(b"", found)) == (
            expected.status_code, OURS.sub(b"", expected.data)), body  # fmt: skip
        theirs = {name.lower(): value for name, value in expected.headers.items()}
        assert _same(told) == _same(theirs), body
        if "X-Request-Id" in headers:
            assert told["x-request-id"] == headers["X-Request-Id"]
    decision = json.loads(served.call("POST", "/v1/decisions", ASK)[2])["decision_id"]
    event = {"event_id": "e1", "decision_id": decision, "kind": "clicked"}
    for text in (b'{"accepted":1,"duplicates":0}', b'{"accepted":0,"duplicates":1}'):
        answer = served.call("POST", "/v1/outcomes", event, scope="reward")
        assert (answer[0], answer[2]) == (202, text)
    assert served.call("POST", "/v1/outcomes", event, scope="decide")[0] == 403
    web.loop.carry()
    assert web.loop.runtime.spool.rejected() == 0


def _table(asked: list[dict[str, Any]], **more: list[Any]) -> bytes:
    columns = {
        "campaign": pa.array([one["campaign"] for one in asked]).dictionary_encode(),
        "unit": pa.array([one["unit"] for one in asked]),
        "recency_days": pa.array([one["attributes"]["recency_days"] for one in asked]),
    }
    table, sink = pa.table(columns | more), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    out: bytes = sink.getvalue().to_pybytes()
    return out


def _told(mimetype: str | None, body: bytes) -> Any:
    """Return what an answer says of every row, but for what is new with every answer."""
    if mimetype != arrow.MEDIA:
        return OURS.sub(b"", body)
    with pa.ipc.open_stream(body) as reader:
        found = reader.read_all()
    assert len(set(found["decision_id"].to_pylist())) == found.num_rows
    return found.schema, found.drop(["decision_id", "expires_at"]).to_pydict()


def test_lists_are_answered_as_flask_does(served: Served) -> None:
    """In front of it, where they are plain; and whatever is refused leaves nothing behind."""
    web = served.web
    rule = [{"attribute": "visits", "op": ">", "value": 2}]
    only = [DEFINITION["arms"][0], *(arm | {"only_if": rule} for arm in DEFINITION["arms"][1:])]
    web.loop.launch(key="calm", name="Calm", arms=only)
    web.loop.launch(key="other", name="Other", arms=only)
    calm = [
        ASK | {"campaign": "other" if n % 3 else "calm", "unit": f"ünit {n}" if n % 7 else f"u{n}"}
        for n in range(100)
    ]
    web.loop.decide("ana")  # keeps its arm from now on
    kept, wrong = [None] * 99 + ["r-1"], [*calm[:99], ASK | {"campaign": "none"}]
    tables: dict[str, str | None] = {"Content-Type": arrow.MEDIA}
    text: dict[str, str | None] = {"Content-Type": "application/json"}

    def listed(asked: list[dict[str, Any]], separators: tuple[str, str] = (",", ":")) -> bytes:
        return json.dumps({"decisions": asked}, separators=separators).encode()

    lists: list[tuple[int, bool, bytes, dict[str, str | None]]] = [
        (100, True, _table(calm), tables),
        (100, True, _table(calm), tables | {"Accept": "*/*", "X-Request-Id": "mine"}),
        (100, False, _table(calm), tables | {"Accept": "application/json"}),
        (100, False, _table(calm, request_id=kept), tables),
        (100, False, _table(calm, exclude_arms=[[]] * 99 + [["ten"]]), tables),
        (2, False, _table([calm[0], ASK]), tables),
        (0, False, _table(calm), tables | {"Idempotency-Key": "k"}),
        (0, False, _table(calm), tables | {"Authorization": f"Bearer {web.keys['reward']}"}),
        (0, False, _table(calm, late=[{}] * 100), tables),
        (0, False, _table(wrong), tables),
        (0, False, _table([calm[0], calm[1] | {"unit": "a\x01"}]), tables),
        (0, False, _table(calm)[:-9], tables),
        (0, False, b"", tables),
        (100, True, listed([one | {"unit": f"u{n}"} for n, one in enumerate(calm)]), text),
        (100, False, listed(calm, (", ", ": ")), text),
        (2, False, listed([calm[0], ASK]), text),
        (0, False, listed(wrong), text),
        (0, False, listed([]), text),
        (0, False, listed(calm), text | {"Idempotency-Key": "k"}),
    ]
    for rows, front, body, headers in lists:
        # Twice: the second head is known by its bytes.
        answers = [served.call("POST", "/v1/decisions", body, headers) for _ in range(2)]
        sent: dict[str, str | None] = {"Authorization": f"Bearer {web.keys['decide']}"}
        sent |= headers
        expected = web.client.post(
            "/v1/decisions",
            data=body,
            headers={name: value for name, value in sent.items() if value is not None},
        )
        wanted = expected.status_code, _told(expected.mimetype, expected.data)
        theirs = {name.lower(): value for name, value in expected.headers.items()}
        del theirs["content-length"]
        for status, told, found in answers:
            assert (status, _told(expected.mimetype, found)) == wanted, headers
            assert len(found) == int(told.pop("content-length"))
            assert _same(told) == _same(theirs)
            assert ("vary" not in told) == front, headers
        assert (expected.status_code == 200) == (rows > 0)
    web.loop.carry()
    # One of a table has a request id, so it is there once.
    distinct = 1 + 3 * sum(rows for rows, *_ in lists) - 2
    with db.transaction(web.loop.engine) as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == distinct
    assert web.loop.runtime.spool.rejected() == 0
    figures = served.call("GET", "/metrics", scope="read")[2].decode()
    counted = sum(
        float(line.rsplit(" ", 1)[1])
        for line in figures.splitlines()
        if line.startswith("bandit_decisions_total{") and 'campaign="calm"' in line
    )
    assert counted == 2 * (7 * 34 + 2)


def _same(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in LEFT_OUT}


def test_a_unit_keeps_its_arm_whoever_asks_at_once(served: Served) -> None:
    def ask(_number: int) -> tuple[str, str]:
        status, _, found = served.call("POST", "/v1/decisions", ASK | {"unit": "dora"})
        assert status == 200
        return json.loads(found)["arm"], json.loads(found)["reason"]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(128)))
    assert len({arm for arm, _ in answers}) == 1
    assert sorted(reason for _, reason in answers) == ["policy"] + ["sticky"] * 127


def _learnt_by_features(web: Web, key: str, **changes: Any) -> None:
    """Launch a campaign that decides by features, and let it learn who buys what."""
    features = [{"kind": "number", "key": f"f{n}", "name": f"F {n}"} for n in range(3)]
    number = web.loop.launch(key=key, features=features, policy={"name": "linear_thompson"},
                             **changes)  # fmt: skip
    asked = [
        DecisionRequest(campaign=key, unit=f"{n}", attributes=_features(n)) for n in range(300)
    ]
    for n, reply in enumerate(decide.decide(web.loop.runtime, asked)):
        if random.Random(n).random() < (0.4 if (n % 5 < 2) == (reply.arm == "ten") else 0.3):
            web.loop.outcome(reply)
    web.loop.carry()
    assert web.loop.learn(number) is not None
    web.loop.carry()


def _features(n: int) -> dict[str, Any]:
    return {"f0": n % 5 - 2, "f1": n / 100, "f2": 0.1}


def test_requests_that_come_at_once_are_drawn_together(served: Served) -> None:
    """Where contexts decide: each from its own simplex, which replay finds to eight digits."""
    web = served.web
    _learnt_by_features(web, "lines")
    _learnt_by_features(web, "kept", sticky_seconds=3600)
    asked: list[dict[str, Any]] = [
        {"campaign": key, "unit": f"u{n % 12}", "attributes": _features(n)}
        for key in ("lines", "kept") for n in range(24)
    ]  # fmt: skip
    for n in range(12, 24):
        asked[n]["request_id"] = f"r{n}" if n >= 18 else f"once-{n}"
    for key in ("lines", "kept"):
        for other in range(200):
            one = asked[0] | {"campaign": key, "unit": f"other {other}"}
            told = served.call("POST", "/v1/decisions", one)
            if told[0] == 200 and json.loads(told[2])["snapshot"] > 0:
                break
            time.sleep(0.1)
    bodies = [json.dumps(one).encode() for one in asked]
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            for _ in asked
        ]
        for connection in connections:  # by now all of them are taken
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n")
            assert _read(connection) == b'{"status":"ok"}'
        os.kill(served.pid, signal.SIGSTOP)
        for worker in web_workers(served.pid):
            os.kill(worker, signal.SIGSTOP)
        for connection, body in zip(connections, bodies, strict=True):
            connection.sendall(request(served, body, f"Content-Length: {len(body)}"))
        for worker in (*web_workers(served.pid), served.pid):
            os.kill(worker, signal.SIGCONT)
        found = [json.loads(_read(connection)) for connection in connections]
    web.loop.carry()
    with db.transaction(web.loop.engine) as session:
        ids = [uuid.UUID(one["decision_id"]) for one in found]
        query = select(Decision).where(Decision.id.in_(ids))
        logged = {row.id: row for row in session.scalars(query)}
        rows = [logged[id] for id in ids]
        assert all(row.why.get("together") for row in rows[:18])
        # Under an id of the caller's it is the same in every bit, wherever it is asked.
        assert not any(row.why.get("together") for row in rows[18:24])
        assert len({tuple(row.simplex) for row in rows[:24]}) == 24
        for row, answer in zip(rows, found, strict=True):
            assert answer["propensity"] == row.propensity == row.simplex[row.arm]
            assert replay(session, row.id).same
    arms: dict[str, set[str]] = {}
    for one, answer in zip(asked[24:], found[24:], strict=True):
        arms.setdefault(one["unit"], set()).add(answer["arm"])
    assert {len(of_unit) for of_unit in arms.values()} == {1}
    assert [answer["reason"] for answer in found[24:]].count("policy") <= 12


def test_a_draw_that_fails_as_nobody_foresaw_leaves_no_request_unanswered(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a policy's arithmetic, which gives the default arm: a mistake of ours."""
    _learnt_by_features(web, "lines")
    _learnt_by_features(web, "others")
    hot, answers = Hot(web.app), list[Answer | None]()
    headers = {
        b"content-type": b"application/json",
        b"authorization": f"Bearer {web.keys['decide']}".encode(),
    }
    broken = web.loop.runtime.catalogue.campaign("lines")

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(broken, "draws", fail)

    async def ask() -> None:
        for n, key in enumerate(("lines", "others", "lines", "others")):
            one = {"campaign": key, "unit": f"u{n}", "attributes": _features(n)}
            hot.decision(headers, json.dumps(one).encode(), answers.append)
        while len(answers) < 4:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 20))
    told = [answer[0] for answer in answers if answer is not None]
    assert sorted(told) == [200, 200, FAILED[0], FAILED[0]]


def _read(connection: socket.socket) -> bytes:
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    assert reply.status == 200
    return reply.read()


def test_bodies_of_any_length_and_clients_of_any_patience(served: Served) -> None:
    long = b'{"campaign": "spring", "unit": "' + b"x" * (3 << 20) + b'"}'
    assert served.call("POST", "/v1/decisions", long)[0] == 413
    file = b"id,name\n" + b"".join(b"p%d,Item of some length %d\n" % (n, n) for n in range(90_000))
    assert len(file) > 2 << 20
    kept = served.call(
        "POST", "/v1/imports?kind=products", file, {"Content-Type": "text/csv"}, scope="manage"
    )
    assert kept[0] == 202
    path = served.web.loop.runtime.config.data / "imports" / str(json.loads(kept[2])["id"])
    assert path.read_bytes() == file
    assert served.call("HEAD", "/openapi.json")[2] == b""
    document = served.call("GET", "/openapi.json")
    assert len(document[2]) == int(document[1]["content-length"]) > 100_000
    assert served.call("GET", "/no/such%20p%C3%A4ge")[0] == 404
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    half = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(1_030)]
    for one in half:
        one.sendall(b"POST /v1/decisions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert served.call("POST", "/v1/decisions", ASK)[0] == 200, "those who dawdle hold up nobody"
    for one in half:
        one.close()
    assert served.call("POST", "/v1/decisions", ASK)[0] == 200


def test_a_worker_that_may_open_no_more_files_rests_between_its_tries(served: Served) -> None:
    (worker,) = web_workers(served.pid)
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    few = len(os.listdir(f"/proc/{worker}/fd")) + 5
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (few, before[1]))
    waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(30)]
    time.sleep(1.0)
    assert 2 < served.log.read_text().count("connection_not_taken") < 15
    for one in waiting:
        one.close()
    assert served.call("POST", "/v1/decisions", ASK)[0] == 200


def request(served: Served, body: bytes, *headers: str, version: str = "1.1") -> bytes:
    """Return a request for a decision as it goes over the wire."""
    lines = [
        f"POST /v1/decisions HTTP/{version}", "Host: shop", "Content-Type: application/json",
        f"Authorization: Bearer {served.web.keys['decide']}", *headers,
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + body


def heard(served: Served, *pieces: bytes, answers: int = 1) -> list[tuple[int, bytes]]:
    """Send pieces over one connection; return the status and body of so many answers."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        found = []
        for _ in range(answers):
            reply = http.client.HTTPResponse(connection)
            reply.begin()
            found.append((reply.status, reply.read()))
            reply.close()
        return found


def test_requests_in_one_piece_are_answered_in_their_order(served: Served) -> None:
    asked, body = {}, {}
    for name in ("ana", "bea", "carl"):
        asked[name] = json.dumps(ASK | {"unit": name, "request_id": name}).encode()
        body[name] = request(served, asked[name], f"Content-Length: {len(asked[name])}")
    page = b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n"
    alone = {name: heard(served, body[name])[0] for name in body}
    assert {status for status, _ in alone.values()} == {200}
    together = heard(served, body["bea"] + page + body["ana"] + body["carl"], answers=1)
    assert together == [alone["bea"]]
    # `http.client` reads ahead, so the rest is looked for in what came as a whole.
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(body["bea"] + page + body["ana"] + body["carl"])
        came = b""
        while came.count(b"decision_id") < 3:
            came += connection.recv(65536)
    places = [came.index(alone[name][1]) for name in ("bea", "ana", "carl")]
    assert places == sorted(places)
    assert places[0] < came.index(b"HTTP/1.1 200", 10) < places[1]
    assert came.count(b"HTTP/1.1 200 OK") == 4


def test_a_head_that_is_known_is_worth_no_more_than_one_that_is_read(served: Served) -> None:
    """All on one connection, whose worker has parsed this head before."""
    units = {
        name: json.dumps(ASK | {"unit": name, "request_id": name}).encode()
        for name in ("ana", "bea", "cyd")
    }
    head, raw = {}, {}
    for name, body in units.items():
        raw[name] = request(served, body, f"Content-Length: {len(body)}")
        head[name] = raw[name].removesuffix(body)
    assert head["ana"] == head["bea"] == head["cyd"]
    ana, bea, cyd = (raw[name] for name in units)
    pieces = [
        *([ana], [bea], [cyd]),
        [bea[:40], bea[40:]],  # known, but cut in its middle
        [bea[:-3], bea[-3:]],
        [ana + bea[:50], bea[50:]],  # known, with the next behind it
        [cyd + cyd],
        [b"\r\n" + ana],  # as old clients send
        [bea],
    ]
    told: list[bytes] = []
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        for parts in pieces:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.05)
            came = b""
            while came.count(b'"products":[') < b"".join(parts).count(b"POST "):
                came += connection.recv(65536)
            told += re.findall(rb'"decision_id":"(.{36})"', came)
        alone = {
            name: json.loads(heard(served, raw[name])[0][1])["decision_id"].encode()
            for name in units
        }
        assert len(set(alone.values())) == 3
        order = ("ana", "bea", "cyd", "bea", "bea", "ana", "bea", "cyd", "cyd", "ana", "bea")
        assert told == [alone[name] for name in order]
        with db.transaction(served.web.engine) as session:
            keys.revoke(session, served.web.keys["decide"].split("_")[2], actor="test")
        served.web.loop.carry()
        time.sleep(0.2)
        connection.sendall(ana)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")


def test_what_a_request_may_look_like(served: Served) -> None:
    body = json.dumps(ASK).encode()
    length = f"Content-Length: {len(body)}"
    assert heard(served, request(served, body[:9], length), body[9:])[0][0] == 200
    old = heard(served, request(served, body, length, version="1.0"))
    assert old[0][0] == 200
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert heard(served, request(served, chunked, "Transfer-Encoding: chunked"))[0][0] == 200
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(request(served, b"", length, "Expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    for wrong in (
        b"\x00\x01\x02\r\n\r\n",
        request(served, body, length, "Content-Length: 3"),
        request(served, body, length, "Transfer-Encoding: chunked"),
        request(served, b"", "X: " + "y" * (HEAD_BYTES + 1)),
    ):
        assert heard(served, wrong)[0][0] == 400
    assert served.call("POST", "/v1/decisions", ASK)[0] == 200


def test_the_silent_are_let_go() -> None:
    loop = uvloop.new_event_loop()
    one = Protocol(uvicorn.Config(lambda: None), ServerState(), {}, _loop=loop)
    one.since, one.reading = 100.0, True
    assert [one.overdue(100 + seconds) for seconds in (READ_SECONDS, READ_SECONDS + 1)] == [
        False, True]  # fmt: skip
    one.reading = False
    assert [one.overdue(100 + seconds) for seconds in (IDLE_SECONDS, IDLE_SECONDS + 1)] == [
        False, True]  # fmt: skip
    loop.close()


def test_a_disk_that_hangs_costs_a_checkout_no_more_than_its_discount(
    served: Served, config: Config
) -> None:
    """Another process holds the log: a thousand wait for it, the others are answered at once."""
    decided = served.call("POST", "/v1/decisions", ASK)[2]
    event = {"event_id": "e", "decision_id": json.loads(decided)["decision_id"], "kind": "clicked"}
    with Segments(config.data / "log").locked():
        asked = [_sent(served, ASK | {"unit": f"u{n}"}) for n in range(MAX_WAITING + MORE)]
        early = _answered(asked, MORE)
        assert {_reason(one) for one in early} == {"unavailable"}
        status, headers, _ = served.call("POST", "/v1/outcomes", event, scope="reward")
        assert (status, headers["retry-after"]) == (503, "1")
        told = json.loads(served.call("POST", "/v1/decisions", ASK)[2])
        assert (told["arm"], told["reason"]) == ("none", "unavailable")
    assert {_reason(one) for one in asked if one not in early} == {"policy"}
    assert served.call("POST", "/v1/outcomes", event, scope="reward")[0] == 202
    assert served.web.loop.runtime.spool.last() == 1 + MAX_WAITING + 1


def _sent(served: Served, body: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    headers = {"Authorization": f"Bearer {served.web.keys['decide']}"}
    connection.request(
        "POST", "/v1/decisions", json.dumps(body), headers | {"Content-Type": "application/json"}
    )
    return connection


def _reason(connection: http.client.HTTPConnection) -> str:
    with contextlib.closing(connection):
        reason: str = json.loads(connection.getresponse().read())["reason"]
        return reason


def _answered(
    asked: list[http.client.HTTPConnection], number: int
) -> list[http.client.HTTPConnection]:
    """Wait until so many have an answer, and no more within a moment."""
    poll = waiting.poll()
    for one in asked:
        poll.register(one.sock, waiting.POLLIN)
    deadline = time.monotonic() + 60
    while len(poll.poll(500)) < number:
        assert time.monotonic() < deadline
    time.sleep(0.5)
    ready = {descriptor for descriptor, _ in poll.poll(0)}
    assert len(ready) == number
    return [one for one in asked if one.sock.fileno() in ready]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=600)
pairs = st.dictionaries(st.text(max_size=3) | st.just("a" * 201), scalars, max_size=4)
bodies: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"campaign": st.just("spring") | st.text(max_size=2), "unit": st.text(max_size=210) | scalars},
    optional={
        "attributes": pairs,
        "product": scalars,
        "request_id": scalars,
        "exclude_arms": st.just([]),
        "more": scalars,
    },
)


@settings(deadline=None, derandomize=True)
@given(bodies, st.booleans())
def test_what_is_read_plainly_is_what_the_document_says(body: Any, as_text: bool) -> None:
    raw = json.dumps(body, ensure_ascii=as_text).encode("utf-8", "surrogatepass")
    plain = PlainRequest.read(raw)
    if plain is None:
        return
    document = validation.parse(DecisionRequest, raw) if plain.campaign == "spring" else None
    if document is None:
        return
    assert plain.full() == document
    for mark in (fingerprint, earlier_fingerprint):
        assert mark(plain, b"unit") == mark(document, b"unit")
    types = [type(value) for value in document.attributes.values()]
    assert [type(value) for value in plain.attributes.values()] == types


def test_most_requests_are_plain() -> None:
    asked = ASK | {"unit": "ünï", "product": "p1", "request_id": "r", "attributes": {"a": 1.5}}
    assert PlainRequest.read(json.dumps(asked, ensure_ascii=False).encode()) is not None
    assert PlainRequest.read(b'{"campaign":"spring","unit":"u"}') is not None
