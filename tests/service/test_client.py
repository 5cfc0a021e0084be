"""The SDK against the real application, and against servers that misbehave."""

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine

from service.client import (
    Ask,
    Client,
    Decision,
    HttpTransport,
    Outcome,
    RefusedError,
    Request,
    Response,
    TransportError,
    UnavailableError,
    WsgiTransport,
)
from service.config import Config
from tests.web import Web, serving

REPLY = {
    "decision_id": "0b8a5f0e-1c4e-8f6e-9d5b-0123456789ab",
    "campaign": "spring",
    "arm": "ten",
    "offer": {"kind": "percentage", "percent": 10.0},
    "propensity": 0.5,
    "reason": "policy",
    "segment": "loyal",
    "snapshot": 3,
    "expires_at": "2026-01-01T00:00:00Z",
}


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        made.loop.launch()
        yield made


def client_of(web: Web, scope: str = "decide", **options: Any) -> Client:
    options.setdefault("timeout", 10.0)
    return Client("http://in-process", web.keys[scope], transport=WsgiTransport(web.app), **options)


def test_a_decision_comes_from_the_application(web: Web) -> None:
    barter = client_of(web)
    decision = barter.decide("spring", "ana", {"recency_days": 3})
    assert decision.segment == "loyal"
    assert decision.reason == "policy"
    assert not decision.is_default
    assert decision.arm in ("none", "ten", "twenty")
    assert 0 < decision.propensity < 1
    assert decision.expires_at is not None
    assert decision.expires_at > dt.datetime.now(dt.UTC)
    assert decision.offer is not None
    assert decision.error is None
    same = barter.decide("spring", "ana", request_id="cart-9")
    assert barter.decide("spring", "ana", request_id="cart-9") == same
    assert web.loop.runtime.spool.last() == 2


def test_many_decisions_come_in_their_order(web: Web) -> None:
    asks = [Ask("spring", f"unit-{n}", request_id=f"cart-{n}") for n in range(1_100)]
    decisions = client_of(web).decide_many(asks)
    assert len({decision.decision_id for decision in decisions}) == 1_100
    assert client_of(web).decide("spring", "unit-7", request_id="cart-7") == decisions[7]


def test_an_outcome_is_stored_once(web: Web) -> None:
    decision = client_of(web).decide("spring", "ana")
    till = client_of(web, "reward")
    for _ in range(2):
        assert till.outcome(
            decision.decision_id, "purchased", revenue_minor=4200, margin_minor=0, event_id="o-1"
        )
    assert till.outcomes(
        [Outcome(decision.decision_id, "exposed"), Outcome(decision.decision_id, "clicked")]
    )
    assert web.loop.runtime.spool.last() == 4
    web.loop.carry()
    rows = web.call("GET", "/v1/campaigns/spring/report", scope="read").get_json()
    assert rows["header"]["purchases"] == 1


def test_what_barter_refuses_is_the_default_arm_or_an_exception(web: Web) -> None:
    quiet = client_of(web, default_arm="control")
    decision = quiet.decide("autumn", "ana")
    assert (decision.arm, decision.is_default, decision.reason) == ("control", True, "unavailable")
    assert decision.decision_id is None
    assert "404" in str(decision.error)
    assert quiet.decide("autumn", "ana", default_arm="other").arm == "other"
    assert not quiet.outcome(decision.decision_id, "purchased"), "there is nothing to report to"
    assert not client_of(web, "decide").outcome("x", "purchased"), "this key may not"
    loud = client_of(web, raise_errors=True)
    with pytest.raises(RefusedError) as refused:
        loud.decide("spring", "")
    assert refused.value.status == 422
    assert refused.value.problem["errors"][0]["field"] == "unit"
    with pytest.raises(RefusedError, match="JSON"):
        loud.decide("spring", "ana", {"spend": float("nan")})
    assert client_of(web).decide("spring", "ana", {"spend": float("nan")}).is_default


class Scripted:
    """A transport that answers as told, and remembers what it was asked."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers, self.asked = list(answers), list[Request]()

    def send(self, request: Request, timeout_seconds: float) -> Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing to close."""


def answer(status: int, document: Any) -> Response:
    return Response(status, {}, json.dumps(document).encode())


def test_a_retry_repeats_the_idempotency_key() -> None:
    wire = Scripted(TransportError("reset"), answer(503, {}), answer(200, REPLY))
    decision = Client("", "key", transport=wire).decide("spring", "ana")
    assert decision.arm == "ten"
    assert len(wire.asked) == 3
    ids = {json.loads(request.body)["request_id"] for request in wire.asked}
    assert len(ids) == 1
    wire = Scripted(answer(500, {}), answer(202, {"accepted": 1, "duplicates": 0}))
    assert Client("", "key", transport=wire).outcome(decision.decision_id, "purchased")
    events = [json.loads(request.body)["outcomes"][0]["event_id"] for request in wire.asked]
    assert len(events) == 2
    assert len(set(events)) == 1


def test_retries_end_with_the_time_out() -> None:
    wire = Scripted(answer(503, {"detail": "not now"}))
    barter = Client("", "key", transport=wire, timeout=0.2)
    started = time.monotonic()
    decision = barter.decide("spring", "ana")
    assert time.monotonic() - started < 0.3
    assert decision.is_default
    assert "not now" in str(decision.error)
    assert len(wire.asked) > 2


@pytest.mark.parametrize("document", [None, [], {}, {"decision_id": 1}, REPLY | {"expires_at": 5}])
def test_an_answer_that_is_no_decision_is_not_served(document: Any) -> None:
    wire = Scripted(answer(200, document))
    assert Client("", "key", transport=wire, timeout=0.1).decide("spring", "ana").is_default
    many = Client("", "key", transport=wire, timeout=0.1).decide_many([Ask("spring", "ana")])
    assert [decision.is_default for decision in many] == [True]


@contextmanager
def server(handle: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[float]]]:
    """A socket that hands every connection to ``handle``; gives its URL and connection times."""
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                times.append(time.monotonic())
                with connection:
                    connection.settimeout(5)
                    handle(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", times
        finally:
            stop.set()
            thread.join()


def request_from(connection: socket.socket) -> bytes:
    """Read one request; empty when the other side has gone."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65_536)
        if not part:
            return b""
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    ]
    while len(body) < length:
        body += connection.recv(65_536)
    return body


def reply_of(document: Any, *, status: str = "200 OK") -> bytes:
    body = json.dumps(document).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_one_connection_carries_many_calls() -> None:
    def handle(connection: socket.socket) -> None:
        while request_from(connection):
            connection.sendall(reply_of(REPLY))

    with server(handle) as (url, times):
        barter = Client(url, "key", timeout=5)
        assert [barter.decide("spring", "ana").arm for _ in range(5)] == ["ten"] * 5
        barter.close()
    assert len(times) == 1


def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    def handle(connection: socket.socket) -> None:
        request_from(connection)
        connection.sendall(reply_of(REPLY))

    with server(handle) as (url, times):
        barter = Client(url, "key", timeout=5)
        for _ in range(3):
            assert not barter.decide("spring", "ana").is_default
            time.sleep(0.02)
        barter.close()
    assert len(times) == 3


@pytest.mark.parametrize("drip", [b"", b"H"])
def test_a_server_that_hangs_or_drips_costs_no_more_than_the_time_out(drip: bytes) -> None:
    gone = threading.Event()

    def handle(connection: socket.socket) -> None:
        request_from(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" if drip else b"")
        while not gone.wait(0.02):
            try:
                connection.sendall(drip)
            except OSError:
                return

    with server(handle) as (url, _):
        barter = Client(url, "key")
        started = time.monotonic()
        decision = barter.decide("spring", "ana")
        took = time.monotonic() - started
        gone.set()
        barter.close()
    assert decision.is_default
    assert decision.reason == "unavailable"
    assert 0.2 < took < 0.6


def test_errors_are_raised_only_when_asked_for() -> None:
    nobody = HttpTransport("http://127.0.0.1:1/prefix")
    with pytest.raises(TransportError):
        nobody.send(Request("GET", "/", {}), 0.5)
    assert Client("http://127.0.0.1:1", "key").decide_many([Ask("a", "b")])[0].is_default
    assert not Client("http://127.0.0.1:1", "key").outcome("id", "purchased")
    loud = Client("http://127.0.0.1:1", "key", raise_errors=True)
    with pytest.raises(UnavailableError):
        loud.decide("spring", "ana")
    with pytest.raises(ValueError, match="base_url"):
        Client("ftp://barter", "key")
    with pytest.raises(ValueError, match="timeout"):
        Client("http://barter", "key", timeout=0)


def test_the_client_imports_nothing_else_of_the_service() -> None:
    import subprocess
    import sys

    program = (
        "import sys; before = set(sys.modules); import service.client;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "new -= sys.stdlib_module_names;"
        "mine = [n for n in sys.modules if n.startswith('service.')];"
        "assert new == {'service'}, new;"
        "assert all(n.startswith('service.client') for n in mine), mine"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert Decision.__doc__
