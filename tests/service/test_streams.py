"""Decisions as tables of Arrow and line by line: the same answers, and what is refused."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from service import arrow
from service.config import Config
from service.models import Decision
from service.views import streams
from tests.service.test_bulk import ARMS, FEATURES, SEGMENTS
from tests.web import Web, fields, problem, serving


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        made.loop.launch(segments=SEGMENTS, arms=ARMS, features=FEATURES)
        yield made


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=7)
    out: bytes = sink.getvalue().to_pybytes()
    return out


def send(web: Web, body: bytes, **headers: str) -> Any:
    return web.call("POST", "/v1/decisions", scope="decide", data=body, headers=headers,
                    content_type=arrow.MEDIA)  # fmt: skip


def told(reply: Any) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.get_data(as_text=True)
    assert reply.mimetype == arrow.MEDIA
    with pa.ipc.open_stream(reply.get_data()) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()
    return rows


def columns(rows: int = 40) -> dict[str, Any]:
    """Return a table with every type of column that is taken, and holes in it."""
    rng = random.Random(2)
    holes = [None if n % 7 == 0 else n for n in range(rows)]
    return {
        "campaign": pa.array(["spring"] * rows).dictionary_encode(),
        "unit": pa.array([f"u{n}" for n in range(rows)]),
        "recency_days": pa.array(holes, pa.int16()),
        "visits": pa.array([float("nan") if n % 5 == 0 else n / 2 for n in range(rows)]),
        "country": pa.array([rng.choice(["DE", "FR", None]) for _ in range(rows)]
                            ).dictionary_encode(),
        "member": pa.array([None if n % 3 == 0 else n % 2 == 0 for n in range(rows)]),
        "value": pa.array([rng.random() for _ in range(rows)], pa.float32()),
        "nothing": pa.nulls(rows),
    }  # fmt: skip


def test_a_table_is_answered_as_the_same_list_of_json(web: Web) -> None:
    table = pa.table(columns())
    rows = told(send(web, written(table)))
    again = send(web, written(table), Accept="application/json").get_json()["decisions"]
    assert [list(row) for row in rows] == [list(row) for row in again]
    asked = [
        {"campaign": row.pop("campaign"), "unit": row.pop("unit"),
         "attributes": {k: v for k, v in row.items() if v is not None and v == v}}
        for row in table.to_pylist()
    ]  # fmt: skip
    by_json = web.call("POST", "/v1/decisions", scope="decide", json={"decisions": asked})
    web.loop.carry()
    names = ("segment", "reason", "snapshot", "campaign")
    expected = [[one[name] for name in names] for one in by_json.get_json()["decisions"]]
    assert [[row[name] for name in names] for row in rows] == expected
    with web.engine.connect() as connection:
        found = connection.execute(
            select(Decision.unit, Decision.context, Decision.mask, Decision.segment).distinct()
        ).all()  # fmt: skip
    assert len(found) == len(asked), "one context for each unit, whatever it came in"
    assert all(json.loads(row["offer"])["kind"] in ("none", "percentage") for row in rows)


def test_what_is_looked_up_by_itself_may_stand_in_a_table(web: Web) -> None:
    table = pa.table({
        "campaign": ["spring"] * 4, "unit": ["a", "b", "c", "d"],
        "request_id": ["r1", None, None, None], "product": [None, "p1", None, None],
        "exclude_arms": [None, None, ["ten", "twenty"], []],
    })  # fmt: skip
    first, second = told(send(web, written(table))), told(send(web, written(table)))
    same = [
        one["decision_id"] == two["decision_id"] for one, two in zip(first, second, strict=True)
    ]
    assert same == [True, False, False, False]
    assert first[2]["arm"] == "none"
    other = table.set_column(1, "unit", pa.array(["z", "b", "c", "d"]))
    assert fields(send(web, written(other)), 409) == ["decisions[0].request_id"]


REFUSED: dict[str, tuple[Any, str]] = {
    "no unit": (lambda c: c.pop("unit"), "unit"),
    "no campaign": (lambda c: c.pop("campaign"), "campaign"),
    "units are numbers": (lambda c: c.update(unit=pa.array(range(40))), "unit"),
    "a unit is null": (lambda c: c.update(unit=pa.array([None] + ["u"] * 39)), "decisions[0].unit"),
    "a unit is empty": (lambda c: c.update(unit=pa.array(["u", ""] * 20)), "decisions[1].unit"),
    "a unit is long": (lambda c: c.update(unit=pa.array(["u"] * 39 + ["u" * 201])),
                       "decisions[39].unit"),
    "control": (lambda c: c.update(unit=pa.array(["u", "a\0"] * 20)), "decisions[1].unit"),
    "a campaign is null": (lambda c: c.update(campaign=pa.array(["spring"] * 39 + [None])),
                           "decisions[39].campaign"),
    "a number is infinite": (lambda c: c.update(visits=pa.array([1.0, float("inf")] * 20)),
                             "decisions[1].attributes.visits"),
    "a number is large": (lambda c: c.update(visits=pa.array([2**60] * 40)), "visits"),
    "times": (lambda c: c.update(born=pa.array([0] * 40, pa.timestamp("us"))), "born"),
    "lists": (lambda c: c.update(tags=pa.array([["a"]] * 40)), "tags"),
    "a text is long": (lambda c: c.update(country=pa.array(["x" * 501] * 40)),
                       "decisions[0].attributes.country"),
    "many columns": (lambda c: c.update({f"c{n}": pa.nulls(40) for n in range(65)}), "attributes"),
    "a wrong product": (lambda c: c.update(product=pa.array([None] * 39 + [7])),
                        "decisions[39].product"),
    "wrong arms": (lambda c: c.update(exclude_arms=pa.array([["Not a key"]] + [None] * 39)),
                   "decisions[0].exclude_arms[0]"),
}  # fmt: skip


def test_a_table_that_cannot_be_taken_names_the_field(web: Web) -> None:
    for name, (change, field) in REFUSED.items():
        made = columns()
        change(made)
        assert fields(send(web, written(pa.table(made)))) == [field], name
    nope = columns() | {"campaign": pa.array(["spring"] * 3 + ["nope"] * 37)}
    assert fields(send(web, written(pa.table(nope))), 404) == ["decisions[3].campaign"]
    empty = pa.table(columns()).slice(0, 0)
    assert "empty" in problem(send(web, written(empty)), 422)["detail"]
    many = pa.table({"campaign": ["spring"] * 10_001, "unit": ["u"] * 10_001})
    assert "10,000 rows" in problem(send(web, written(many)), 422)["detail"]
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, ["unit", "unit"])
    assert fields(send(web, written(twice))) == ["unit"]
    header = {"Idempotency-Key": "k"}
    assert fields(send(web, written(pa.table(columns())), **header)) == ["Idempotency-Key"]
    assert web.loop.runtime.spool.last() == 0


def test_a_stream_that_is_damaged_compressed_or_none_is_refused(web: Web) -> None:
    whole = written(pa.table(columns()))
    for body in (b"", b"{}", whole[:-8], whole[: len(whole) // 2], b"ARROW1" + whole):
        problem(send(web, body), 400)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    squeezed = written(pa.table(columns()), options=options)
    assert "without compression" in problem(send(web, squeezed), 400)["detail"]
    only = pa.table({"campaign": ["spring"], "unit": pa.array(["u"]).dictionary_encode()})
    squeezed = written(only, options=options)
    assert "without compression" in problem(send(web, squeezed), 400)["detail"]
    large = send(web, b"\0" * (arrow.MAX_BYTES + 1))
    assert "33,554,432" in problem(large, 413)["detail"]
    assert web.loop.runtime.spool.last() == 0


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=4))
def test_no_damage_of_a_stream_is_the_services_fault(
    web: Web, damage: list[tuple[int, int]]
) -> None:
    """Whatever bytes are flipped, the answer is a table or says what is wrong."""
    body = bytearray(written(pa.table(columns())))
    for place, value in damage:
        body[place % (len(body) - 8)] = value
    reply = send(web, bytes(body))
    assert reply.status_code in (200, 400, 404, 422), reply.get_data(as_text=True)


def lines(web: Web, body: bytes) -> list[dict[str, Any]]:
    reply = web.call("POST", "/v1/decisions", scope="decide", data=body, content_type=streams.MEDIA)
    assert reply.status_code == 200
    assert reply.mimetype == streams.MEDIA
    return [json.loads(line) for line in reply.get_data().splitlines()]


def test_every_line_is_answered_by_one(web: Web) -> None:
    good = [json.dumps({"campaign": "spring", "unit": f"u{n}"}) for n in range(2500)]
    good[3] = json.dumps({"campaign": "spring", "unit": "u3", "request_id": "r"})
    good[4] = json.dumps({"campaign": "spring", "unit": "u4", "request_id": "r"})
    good[5] = json.dumps({"campaign": "nope", "unit": "u5"})
    good[6] = json.dumps({"campaign": "spring"})
    good[7] = "{"
    good[8] = '{"campaign":"No key","unit":"u"}'
    found = lines(web, "\n".join([*good[:9], "", " ", *good[9:]]).encode())
    assert len(found) == 2500
    assert {place: one["status"] for place, one in enumerate(found) if "status" in one} == {
        4: 409, 5: 404, 6: 422, 7: 400, 8: 422,
    }  # fmt: skip
    assert found[6]["errors"] == [{"field": "unit", "message": "is required"}]
    assert all(one["campaign"] == "spring" for one in found if "status" not in one)
    web.loop.carry()
    with web.engine.connect() as connection:
        assert len(connection.execute(select(Decision.id)).all()) == 2495


def test_a_line_without_end_ends_the_stream(web: Web) -> None:
    body = b'{"campaign":"spring","unit":"u"}\n' + b"x" * 300_000 + b"\n{}"
    found = lines(web, body)
    assert [one.get("status") for one in found] == [None, 413]
    assert lines(web, b"") == []
