"""Acknowledged means committed in PostgreSQL: who waits, who is let go, and what each is told."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, func, select

from service import arrow, committed, config, metrics
from service.committed import Mark
from service.models import Decision, Outcome
from service.spool import DECISION, FRESH, LATE, Entry, Spool, Stored
from service.views import streams
from tests.web import Web, problem, serving

ASKED = {"campaign": "spring", "unit": "ana"}


def entry(name: str) -> Entry:
    return Entry(DECISION, name.encode(), b"{}")


class Asking(threading.Thread):
    """Somebody who appends and waits."""

    def __init__(self, spool: Spool, name: str) -> None:
        super().__init__(daemon=True)
        self._spool, self._entry = spool, entry(name)
        self.told: list[Stored] | None = None
        self.start()

    def run(self) -> None:
        self.told = self._spool.append([self._entry])

    def answer(self, seconds: float = 10.0) -> list[Stored] | None:
        """Return the answer, None where there is none within some seconds."""
        self.join(seconds)
        return self.told


@pytest.fixture
def late() -> list[int]:
    return []


@pytest.fixture
def spool(data_folder: Path, late: list[int]) -> Iterator[Spool]:
    made = Spool(data_folder, late=late.append)
    yield made
    made.close()


def test_who_appends_waits_until_it_is_committed(spool: Spool, late: list[int]) -> None:
    first, second = Asking(spool, "a"), Asking(spool, "b")
    assert first.answer(0.2) is second.answer(0.0) is None
    assert spool.last() == 2, "it is on disk meanwhile"
    spool.shipped(2)
    assert first.answer() == second.answer() == [FRESH]
    assert (late, spool.acknowledges) == ([], "database")


def test_nobody_waits_longer_than_the_limit_and_the_next_not_at_all(
    spool: Spool, late: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committed, "LIMIT_SECONDS", 0.3)
    assert Asking(spool, "a").answer() == [LATE]
    monkeypatch.setattr(committed, "LIMIT_SECONDS", 1e9)
    started = time.monotonic()
    assert Asking(spool, "b").answer() == [LATE]
    assert time.monotonic() - started < 0.25, "an outage costs its wait once"
    assert (late, spool.acknowledges) == ([1, 1], "disk")
    spool.shipped(1)
    waits = Asking(spool, "c")
    assert waits.answer(0.1) is None, "the carrier goes on: it is worth waiting again"
    spool.shipped(3)
    assert waits.answer() == [FRESH]
    assert Asking(spool, "a").answer() == [Stored(known=b"{}")]


def test_a_repeat_waits_for_its_own_entry_alone(
    spool: Spool, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told to try again must not find newer entries in front every time."""
    monkeypatch.setattr(committed, "LIMIT_SECONDS", 0.1)
    for name in "ab":
        assert Asking(spool, name).answer() == [LATE]
    spool.shipped(1)
    while spool.index():
        pass
    # As another process, which has not waited in vain, and knows the tables alone.
    other = Spool(data_folder, late=id)
    assert Asking(other, "a").answer() == [Stored(known=b"{}", number=1)]
    assert Asking(other, "b").answer() == [Stored(known=b"{}", number=2, late=True)]
    other.close()


def test_a_mark_of_a_longer_log_covers_nothing(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that was lost while this small file stayed."""
    monkeypatch.setattr(committed, "LIMIT_SECONDS", 0.1)
    mark = Mark(data_folder / "committed")
    assert mark.read() == 0
    mark.write(7)
    assert mark.read() == 7
    spool = Spool(data_folder, late=id)
    assert Asking(spool, "a").answer() == [LATE]
    spool.close()
    (data_folder / "committed").write_bytes(bytes([1, *bytes(7), 2, *bytes(7)]))
    assert mark.read() == 0, "it was read while it was written"


@pytest.fixture
def web(config: config.Config, engine: Engine) -> Iterator[Web]:
    with serving(replace(config, acknowledge="database"), engine) as made:
        made.loop.launch()
        yield made


def ready(web: Web) -> dict[str, Any]:
    found: dict[str, Any] = web.call("GET", "/readyz", scope=None).get_json()["catalogue"]
    return found


def test_each_kind_of_answer_says_that_it_is_late(
    web: Web, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committed, "LIMIT_SECONDS", 0.2)
    before = metrics.LATE._value.get()

    def send(path: str, scope: str = "decide", **body: Any) -> Any:
        return web.call("POST", path, scope=scope, **body)

    first = send("/v1/decisions", json=ASKED | {"request_id": "r"})
    one: dict[str, Any] = first.json
    assert (first.status_code, one["acknowledged"]) == (200, "disk")
    assert one["reason"] == "policy", "it is what the log has"
    rows = send("/v1/decisions", json={"decisions": [ASKED, ASKED | {"request_id": "q"}]}).json
    assert [row["acknowledged"] for row in rows["decisions"]] == ["disk", "disk"]
    lines = send(
        "/v1/decisions", data=b'{"campaign":"spring","unit":"b"}\n', content_type=streams.MEDIA
    )
    assert b'"acknowledged":"disk"' in lines.get_data()
    table = pa.table({"campaign": ["spring"], "unit": ["c"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    told = send("/v1/decisions", data=sink.getvalue().to_pybytes(), content_type=arrow.MEDIA)
    with pa.ipc.open_stream(told.get_data()) as reader:
        assert reader.read_all()["acknowledged"].to_pylist() == ["disk"]
    # In front of Flask the answer is written before it is late.
    worked = arrow.plainly(web.loop.runtime, sink.getvalue().to_pybytes())
    assert worked is not None
    with pa.ipc.open_stream(worked[1]) as reader:
        assert reader.read_all()["acknowledged"].to_pylist() == ["disk"]
    event = {"event_id": "e", "decision_id": one["decision_id"], "kind": "clicked"}
    refused = send("/v1/outcomes", "reward", json=event)
    assert problem(refused, 503)["detail"].startswith("PostgreSQL has not committed")
    assert refused.headers["Retry-After"]
    assert metrics.LATE._value.get() == before + 7
    assert ready(web)["acknowledges"] == "disk"

    web.loop.carry()
    while web.loop.runtime.spool.index():
        pass
    again = send("/v1/decisions", json=ASKED | {"request_id": "r"}).json
    assert again == {name: value for name, value in one.items() if name != "acknowledged"}
    told = send("/v1/outcomes", "reward", json=event)
    assert (told.status_code, told.json) == (202, {"accepted": 0, "duplicates": 1})
    assert ready(web)["acknowledges"] == "database"
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Decision)) == 6
        assert connection.scalar(select(func.count()).select_from(Outcome)) == 1
