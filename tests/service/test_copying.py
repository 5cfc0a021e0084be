"""A decision goes from where it is made into PostgreSQL as it is, whichever release wrote it."""

import datetime as dt
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from service import copying, decide
from service.config import Config
from service.errors import IdempotencyConflict
from service.messages import DecisionRequest
from service.models import Decision
from service.packed import CONTEXT
from service.spool import DECISION, Entry
from tests import copied
from tests.loop import Loop, running

FEATURES = [{"kind": "number", "key": "visits", "name": "Visits", "scale": 3}]
BIG, NUMBER, SMALL = (1 << 63) - 1, (1 << 31) - 1, (1 << 15) - 1
CHANCES = st.lists(st.floats(0, 1), min_size=1, max_size=64)


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def as_json(body: bytes) -> bytes:
    """Return a row as the last release but two wrote it into the local log."""
    row = copied.row(body)
    text = {name: str(row[name]) for name in ("id", "decided_at", "expires_at")}
    text["unit"] = f"\\x{row['unit'].hex()}"
    return json.dumps(row | text, default=str).encode()


def with_arrays(body: bytes) -> bytes:
    """Return a row as the last release but one did: with arrays of PostgreSQL."""
    simplex, context = (copied.row(body)[name] for name in ("simplex", "context"))
    begin = 2 + 20 + 8 + 8 + 12 + 20 + 6 + 12
    end = begin + 4 + 8 * len(simplex)
    rest = body[end : -4 - 4 * len(context)]
    return body[:begin] + array(701, "d", simplex) + rest + array(20, "q", context)


def array(kind: int, letter: str, values: Sequence[float]) -> bytes:
    if not values:
        return struct.pack(">4i", 12, 0, 0, kind)
    head = struct.pack(">6i", 20 + 12 * len(values), 1, 0, kind, len(values), 1)
    return head + b"".join(struct.pack(f">i{letter}", 8, one) for one in values)


@given(
    st.binary(min_size=16, max_size=16), st.integers(0, (1 << 31) - 1), st.integers(0, BIG),
    st.integers(0, SMALL), CHANCES, st.text().filter(lambda text: "\0" not in text),
    st.none() | st.binary(min_size=16, max_size=16),
    st.lists(st.integers(-NUMBER, NUMBER), max_size=64),
)  # fmt: skip
@settings(deadline=None)
def test_a_row_has_what_it_was_made_of(
    id: bytes, number: int, large: int, small: int, chances: list[float], reason: str,
    origin: bytes | None, context: list[int],
) -> None:  # fmt: skip
    moment = copying.EPOCH + dt.timedelta(microseconds=large % (1 << 53))
    at = copying.micros(moment)
    why = json.dumps({"masked": {"ten": reason}}).encode()
    made = copying.row(
        id, number, number, large, id[::-1], small, large, copying.chosen(chances, 0, chances[0]),
        copying.said(reason, origin, why), large, at, at,
        np.array(context, CONTEXT).tobytes(),
    )  # fmt: skip
    row = copied.row(made)
    assert copying.id_of(made) == row["id"].bytes == id
    assert copying.campaign_of(id) == row["id"].int >> 96
    assert [row["campaign_id"], row["revision"]] == [number] * 2
    assert [row["snapshot"], row["mask"], row["reserved_minor"]] == [large] * 3
    assert (row["unit"], row["segment"], row["arm"]) == (id[::-1], small, 0)
    assert (row["simplex"], row["propensity"]) == (chances, chances[0])
    assert (row["reason"], row["origin"] and row["origin"].bytes) == (reason, origin)
    assert (row["why"], row["decided_at"]) == (json.loads(why), moment)
    assert row["context"] == context
    assert copying.read(with_arrays(made)) == made == copying.read(made)


@pytest.mark.parametrize("earlier", [as_json, with_arrays])
@pytest.mark.parametrize("changes", [{}, {"sticky_seconds": 900, "features": FEATURES}])
def test_what_an_earlier_release_left_is_carried(
    loop: Loop, changes: dict[str, Any], earlier: Callable[[bytes], bytes]
) -> None:
    loop.launch(**changes)
    loop.decide("ana", "bea", "ana")
    bodies = [body for _, _, body in loop.runtime.spool.after(0, limit=9)]
    assert [copying.read(earlier(body)) for body in bodies] == bodies
    loop.runtime.spool.append([Entry(DECISION, b"x", earlier(bodies[0]))])
    loop.carry()
    with loop.engine.connect() as connection:
        columns = [getattr(Decision, name) for name in copied.COLUMNS]
        rows = connection.execute(select(*columns).order_by(Decision.position)).all()
    wanted = [copied.row(body) for body in bodies]
    assert [dict(zip(copied.COLUMNS, row, strict=True)) for row in rows] == wanted
    assert loop.runtime.spool.rejected() == 0


def test_what_is_no_decision_is_set_aside(loop: Loop) -> None:
    loop.launch()
    bad = [b"{}", b'{"id":3}', b"{", b"nothing", b"", bytes(300)]
    entries = [Entry(DECISION, bytes([n]), body) for n, body in enumerate(bad)]
    loop.runtime.spool.append(entries)
    loop.decide("ana")
    loop.carry()
    with loop.engine.connect() as connection:
        assert len(connection.execute(select(Decision.id)).all()) == 1
    assert loop.runtime.spool.rejected() == len(bad)


def test_a_repeat_of_what_an_earlier_release_kept_gets_its_reply(loop: Loop) -> None:
    loop.launch()
    request = DecisionRequest(campaign="spring", unit="ana", request_id="cart-1")
    made = decide.draft(loop.runtime, request, dt.datetime.now(dt.UTC))
    row = json.loads(as_json(made.entry().body)) | {
        "fingerprint": decide.earlier_fingerprint(request, made.unit),
        "told": {
            "arm": made.arm,
            "offer": made.offer.model_dump(),
            "segment": made.reply().segment,
        },
    }
    loop.runtime.spool.append([Entry(DECISION, made.key, json.dumps(row).encode())])
    assert loop.decide("ana", request_id="cart-1") == [made.reply()]
    with pytest.raises(IdempotencyConflict):
        loop.decide("bea", request_id="cart-1")
