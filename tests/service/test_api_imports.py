"""Imports over HTTP: a file sent, read by another process, killed, undone; and lists of rows."""

import datetime as dt
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from service import db, products
from service.config import Config
from service.imports import host, jobs
from service.models import Import, Interaction, Product, Transaction
from service.views import contract
from tests.service.test_import_files import HEADER, good
from tests.web import Web, fields, problem, serving


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


@contextmanager
def reading(config: Config) -> Iterator[None]:
    """Read what is sent, as the carrier's process has it done."""
    stop = threading.Event()
    thread = threading.Thread(target=host.run, args=(config, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def upload(web: Web, body: str, *, kind: str = "transactions", **query: Any) -> Any:
    return web.call(
        "POST", "/v1/imports", query_string={"kind": kind, "name": "march.csv"} | query,
        data=body.encode(), content_type="text/csv",
    )  # fmt: skip


def finished(web: Web, id: int, *, seconds: float = 90) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found: dict[str, Any] = web.call("GET", f"/v1/imports/{id}", scope="read").get_json()
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def test_a_file_is_taken_in_read_told_of_and_undone(web: Web, config: Config) -> None:
    sent = upload(web, HEADER + good(40) + "u,p,b,1,-1,0,2026-03-01\n")
    assert sent.status_code == 202, sent.get_data(as_text=True)
    made = sent.get_json()
    assert (made["state"], sent.headers["Location"]) == ("waiting", f"/v1/imports/{made['id']}")
    with reading(config):
        done = finished(web, made["id"])
    assert (done["state"], done["stored"], done["rejected"], done["progress"]) == ("done", 40, 1, 1)
    assert "1 of 41 rows were refused: paid is negative" in done["findings"][0]["text"]
    refused = web.call("GET", f"/v1/imports/{made['id']}/rejects", scope="read")
    assert refused.get_data(as_text=True).splitlines() == [
        "line,field,reason",
        "42,paid,is negative; send what came back as an interaction of kind return",
    ]
    assert list(jobs.folder(config).iterdir()) == [], "the file is not kept"
    listed = web.call("GET", "/v1/imports", scope="read").get_json()
    assert [one["id"] for one in listed["imports"]] == [made["id"]]
    undone = web.call("POST", f"/v1/imports/{made['id']}/undo")
    assert undone.get_json()["state"] == "undone"
    with web.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Transaction)) == 0
    audit = web.call("GET", "/v1/audit", scope="read").get_json()["entries"]
    assert [one["action"] for one in audit[:2]] == ["import.undo", "import.begin"]


def test_a_bad_file_or_setting_is_refused_and_changes_nothing(
    web: Web, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fields(upload(web, "a,b\n1,2\n")) == ["file"]
    assert fields(upload(web, HEADER, kind="houses")) == ["kind"]
    assert fields(upload(web, HEADER, zone="Mars/North")) == ["zone"]
    assert fields(upload(web, HEADER, zone="../../etc/passwd")) == ["zone"]
    assert fields(upload(web, HEADER, columns="Kunde")) == ["columns"]
    assert fields(upload(web, HEADER, decimals="9")) == ["decimals"]
    assert fields(upload(web, HEADER, encoding="ebcdic")) == ["encoding"]
    problem(web.call("POST", "/v1/imports?kind=products", json={}), 415)
    for path in ("/v1/imports/99", "/v1/imports/99/rejects"):
        problem(web.call("GET", path, scope="read"), 404)
    problem(web.call("POST", "/v1/imports/99/undo"), 404)
    monkeypatch.setattr(contract, "MAX_FILE_BYTES", 100)
    detail = problem(upload(web, HEADER + good(40)), 413)["detail"]
    assert "larger than 100 bytes" in detail
    assert "barter import" in detail, "and what to do instead"
    with db.transaction(web.engine) as session:
        assert session.scalars(select(Import)).all() == []
    assert list(jobs.folder(config).iterdir()) == []


def test_columns_may_be_called_anything(web: Web, config: Config) -> None:
    body = "Kunde;Artikel;Datum;Preis\nana;A-1;2026-03-01;4,99\n"
    names = "Kunde=unit,Artikel=product_id,Datum=bought_at,Preis=paid"
    made = upload(web, body, columns=names, zone="Europe/Berlin").get_json()
    with reading(config):
        assert finished(web, made["id"])["stored"] == 1


@pytest.mark.slow
def test_a_reader_that_is_killed_is_followed_by_one_that_goes_on(web: Web, config: Config) -> None:
    rows = 150_000
    made = upload(web, HEADER + good(rows)).get_json()
    with reading(config):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = web.call("GET", f"/v1/imports/{made['id']}", scope="read").get_json()
            if now["rows"]:
                break
            time.sleep(0.05)
        assert 0 < now["rows"] < rows, "killed too late to tell anything"
        readers = subprocess.run(
            ["pgrep", "-f", "service.cli import waiting", "-P", str(os.getpid())],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for process in readers.stdout.split():
            os.kill(int(process), signal.SIGKILL)
        done = finished(web, made["id"])
    assert (done["state"], done["rows"], done["stored"], done["known"]) == ("done", rows, rows, 0)


def test_a_file_that_ends_its_reader_again_and_again_fails(
    web: Web, config: Config, engine: Engine
) -> None:
    made = upload(web, HEADER + good(3)).get_json()
    with db.transaction(engine) as session:
        jobs.get(session, made["id"]).attempts = jobs.ATTEMPTS
    done = jobs.work(engine, config, made["id"], jobs.folder(config) / str(made["id"]))
    assert (done.state, done.stored) == ("failed", 0)
    assert done.error is not None
    assert "several times" in done.error


def test_lists_of_rows_are_stored_once_and_whole_or_not_at_all(web: Web, engine: Engine) -> None:
    items = {"products": [{"id": "A-1", "name": "Tea", "price_minor": 499, "stock": 3},
                          {"id": "A-2"}]}  # fmt: skip
    assert web.call("POST", "/v1/products", json=items).get_json() == {"stored": 2, "known": 0}
    assert web.call("POST", "/v1/products", json=items).get_json() == {"stored": 0, "known": 2}
    price = {"product_id": "A-1", "competitor": "Acme", "price_minor": 450,
             "at": dt.datetime.now(dt.UTC).isoformat()}  # fmt: skip
    for stored in (1, 0):
        sent = web.call("POST", "/v1/competitor-prices", json={"prices": [price]})
        assert sent.get_json() == {"stored": stored, "known": 1 - stored}
    free = {"prices": [price | {"price_minor": 0}]}
    assert fields(web.call("POST", "/v1/competitor-prices", json=free)) == ["prices[0].price_minor"]
    web.loop.carry()
    kept = web.loop.runtime.spool.product("A-1")
    told = products.recalled(kept or b"", dt.datetime.now(dt.UTC))
    assert told["competitor_price_minor"] == 450
    assert told["competitor_gap"] == pytest.approx(499 / 450 - 1)
    deed = {"id": "e1", "unit": "ana", "product_id": "A-1", "kind": "view",
            "at": "2026-03-01T10:00:00Z"}  # fmt: skip
    events = {"interactions": [deed, deed | {"id": "e2", "kind": "review", "value": 4.5}]}
    for stored in (2, 0):
        sent = web.call("POST", "/v1/interactions", scope="reward", json=events)
        assert sent.get_json() == {"stored": stored, "known": 2 - stored}
    bad = {"interactions": [deed | {"id": "e3"}, deed | {"id": "e4", "at": "2199-01-01T00:00:00Z"}]}
    assert fields(web.call("POST", "/v1/interactions", scope="reward", json=bad)) == [
        "interactions[1].at"
    ]
    line = {"unit": "ana", "product_id": "A-1", "paid_minor": 499,
            "bought_at": "2026-03-01T10:00:00+02:00"}  # fmt: skip
    for stored in (1, 0):
        sent = web.call("POST", "/v1/transactions", scope="reward", json={"transactions": [line]})
        assert sent.get_json() == {"stored": stored, "known": 1 - stored}
    free = {"transactions": [line | {"paid_minor": -1}]}
    assert fields(web.call("POST", "/v1/transactions", scope="reward", json=free)) == [
        "transactions[0].paid_minor"
    ]
    with db.transaction(engine) as session:
        assert [one.id for one in session.scalars(select(Interaction))] == ["e1", "e2"]
        assert session.get_one(Product, "A-1").stock == 3
        units = {bytes(one.unit) for one in session.scalars(select(Transaction))}
    assert units == {web.loop.runtime.pseudonym("ana")}
