"""Files that people send: what is read, what is refused, and that the good part stays."""

import datetime as dt
import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import OperationalError

from service import db
from service.config import Config
from service.errors import Conflict, Invalid, TooLarge, Unavailable
from service.imports import jobs, load
from service.imports.kinds import Settings
from service.models import (
    CompetitorPrice,
    Customer,
    Import,
    Interaction,
    Product,
    Transaction,
)
from service.pseudonyms import pseudonym

HEADER = "unit,product_id,basket,quantity,paid,discount,bought_at\n"
GOOD = "u{0},p{0},b{0},1,{0}.50,0.25,2026-03-{1:02d}\n"


def good(count: int, *, start: int = 0) -> str:
    return "".join(GOOD.format(n, 1 + n % 28) for n in range(start, start + count))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "CELLS_PER_CHUNK", 1)


def sent(
    engine: Engine, config: Config, path: Path, kind: str = "transactions", **settings: Any
) -> Import:
    """Import a file as the service does: checked, begun, read to its end."""
    chosen = Settings(**settings)
    jobs.check(path, kind, chosen)
    with db.transaction(engine) as session:
        job = jobs.begin(
            session, jobs.described(path), kind=kind, name=path.name, settings=chosen, actor="test"
        )
    return jobs.work(engine, config, job.id, path)


def written(folder: Path, content: str | bytes, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def count(engine: Engine, table: Any) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def refusals(engine: Engine, job: Import) -> list[tuple[int, str, str]]:
    with db.transaction(engine) as session:
        return [(one.line, one.field, one.message) for one in jobs.rejects(session, job.id)]


def test_a_receipt_file_is_stored_once_under_pseudonyms(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    path = written(tmp_path, HEADER + good(2500))
    job = sent(engine, config, path)
    assert (job.state, job.rows, job.stored, job.known, job.rejected) == ("done", 2500, 2500, 0, 0)
    again = sent(engine, config, path)
    assert (again.stored, again.known) == (0, 2500)
    assert count(engine, Transaction) == 2500
    with db.transaction(engine) as session:
        row = session.scalars(select(Transaction).where(Transaction.product_id == "p7")).one()
        assert (row.quantity, row.paid_minor, row.discount_minor) == (1, 750, 25)
        assert row.unit == pseudonym(config.key("unit"), "u7")
        assert row.bought_at == dt.datetime(2026, 3, 8, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (HEADER.replace(",", ";") + good(3).replace(",", ";").replace(".50", ",50"), "utf-8"),
        (HEADER.replace(",", "\t") + good(3).replace(",", "\t"), "utf-8"),
        (HEADER.replace(",", "|") + good(3).replace(",", "|"), "utf-8"),
        (HEADER.upper().replace("PRODUCT_ID", "Product ID") + good(3), "utf-8"),
        (HEADER + good(3), "utf-8-sig"),
        (HEADER + good(3), "utf-16"),
        (HEADER.replace("\n", "\r\n") + good(3).replace("\n", "\r\n"), "utf-8"),
        (HEADER + "\n" + good(3) + "\n\n", "utf-8"),
        (HEADER + good(3).replace("p1", '"p, ""1"""'), "utf-8"),
        (HEADER + good(3).rstrip("\n"), "utf-8"),
        (HEADER.replace("disc", "note,disc") + good(3).replace(",0.25", ",x,0.25"), "utf-8"),
        (HEADER.replace("paid", "sales_value").replace("unit", "household_id") + good(3), "utf-8"),
    ],
)  # fmt: skip
def test_common_forms_of_csv_all_read_alike(
    engine: Engine, config: Config, tmp_path: Path, text: str, encoding: str
) -> None:
    job = sent(engine, config, written(tmp_path, text.encode(encoding)))
    assert (job.state, job.stored, job.rejected) == ("done", 3, 0), refusals(engine, job)
    with engine.connect() as connection:
        total = connection.scalar(select(func.sum(Transaction.paid_minor)))
    assert total == 50 + 150 + 250


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ("u,p,b,1,-1.00,0,2026-03-01", "paid", "negative"),
        ("u,p,b,1,1.00,-0.5,2026-03-01", "discount", "negative"),
        ("u,p,b,-2,1.00,0,2026-03-01", "quantity", "from 1"),
        ("u,p,b,1.5,1.00,0,2026-03-01", "quantity", "whole number"),
        ("u,p,b,1,\"1,299\",0,2026-03-01", "paid", "not 1,299"),
        ("u,p,b,1,abc,0,2026-03-01", "paid", "number"),
        ("u,p,b,1,1e999,0,2026-03-01", "paid", "large"),
        ("u,p,b,1,1.00,0,2199-01-01", "bought_at", "future"),
        ("u,p,b,1,1.00,0,0001-01-01", "bought_at", "before 1970"),
        ("u,p,b,1,1.00,0,24/11/2026", "bought_at", "such as 2026-11-24"),
        ("u,p,b,1,1.00,0,", "bought_at", "missing"),
        (",p,b,1,1.00,0,2026-03-01", "unit", "missing"),
        ("u,p,b,1,,0,2026-03-01", "paid", "missing"),
        ("u,p,b,1,1.00,0", "row", "6 cells where the header has 7"),
        ("u;p;b;1;1.00;0;2026-03-01", "row", "another character"),
        (HEADER.strip(), "row", "repeats the header"),
        (f"u,{'p' * 300},b,1,1.00,0,2026-03-01", "product_id", "300 characters"),
        ("u,p\0,b,1,1.00,0,2026-03-01", "row", "NUL"),
        ("u,p\x07,b,1,1.00,0,2026-03-01", "product_id", "no text"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_the_good_ones_stay(
    engine: Engine, config: Config, tmp_path: Path, row: str, field: str, message: str
) -> None:
    job = sent(engine, config, written(tmp_path, HEADER + good(2) + row + "\n" + good(2, start=2)))
    assert (job.state, job.stored, job.rejected) == ("done", 4, 1)
    ((line, at, told),) = refusals(engine, job)
    assert (line, at) == (4, field)
    assert message in told
    assert list(job.quality["reasons"].values()) == [1]


def test_rows_of_another_encoding_are_refused_and_named(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    odd = "ü,p,b,1,1.00,0,2026-03-01\n".encode("cp1252")
    path = written(tmp_path, (HEADER + good(2)).encode() + odd + good(1, start=2).encode())
    job = sent(engine, config, path)
    assert (job.stored, job.rejected) == (3, 1)
    assert refusals(engine, job)[0][2] == "holds bytes of another encoding than the rest"
    told = sent(engine, config, path, encoding="cp1252")
    assert (told.stored, told.rejected) == (1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"   \n\n", "is empty"),
        (b"PK\x03\x04rest of an archive", "ZIP archive or an Excel workbook"),
        (b"\x1f\x8brest", "gzip"),
        (b"%PDF-1.7", "PDF"),
        (b"a,b\n\0\0\0\0\n", "NUL bytes"),
        (b"PAR1 but no Parquet", "damaged"),
        (b"a,b,c\n1,2,3\n", "No column holds unit"),
        (HEADER.replace("paid", "x").encode() + b"", "paid or paid_minor or price"),
        (HEADER.replace("basket", "UNIT").encode(), "'unit' twice"),
        (HEADER.replace("basket", "customer_id").encode(), "'unit' and 'customer_id' both hold"),
        (",".join(f"c{n}" for n in range(10_000)).encode() + b"\n", "10,000 columns"),
        (b"x" * 3_000_000, "line of more than"),
        (HEADER.replace(",", "#").encode(), "No column holds unit"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_stored(
    engine: Engine, config: Config, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(Invalid) as refused:
        jobs.check(written(tmp_path, content), "transactions", Settings())
    assert message in refused.value.detail
    assert [one.field for one in refused.value.errors] == ["file"]
    with written(tmp_path, content).open("rb") as stream:
        received = jobs.receive(config, stream, limit=10**9)
    with pytest.raises(Invalid):
        jobs.accept(
            engine, config, received, kind="transactions", name="x", settings=Settings(), actor="t"
        )
    assert list(jobs.folder(config).iterdir()) == []
    assert count(engine, Import) == 0


def test_a_file_that_breaks_off_fails_and_what_was_stored_stays(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    broken = HEADER + good(1500) + 'u,"p' + ",b,1,1.00,0,2026-03-01\n" * 60_000
    job = sent(engine, config, written(tmp_path, broken))
    assert job.state == "failed"
    assert job.error is not None
    assert "a quote that opens does not close" in job.error
    assert count(engine, Transaction) == 1000, "the whole chunks before it"


def test_an_import_goes_on_where_it_was_cut_short(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    path = written(tmp_path, HEADER + good(3500) + "u,p,b,1,-1,0,2026-03-01\n")
    with db.transaction(engine) as session:
        job = jobs.begin(session, jobs.described(path), kind="transactions", name="f",
                         settings=Settings(), actor="test")  # fmt: skip

    class Killed(Exception):
        pass

    def kill(now: Import) -> None:
        if now.rows == 2000:
            raise Killed

    with pytest.raises(Killed):
        jobs.work(engine, config, job.id, path, progress=kill)
    seen = []
    done = jobs.work(engine, config, job.id, path, progress=lambda now: seen.append(now.rows))
    assert seen == [3000, 3501]
    assert (done.state, done.rows, done.stored, done.known, done.rejected) == (
        "done", 3501, 3500, 0, 1
    )  # fmt: skip
    assert sum(done.quality["days"].values()) == 3500
    assert done.quality["reasons"] == {
        "paid is negative; send what came back as an interaction of kind return": 1
    }


def test_two_processes_at_one_import_take_every_chunk_once(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    path = written(tmp_path, HEADER + good(2500))
    with db.transaction(engine) as session:
        job = jobs.begin(session, jobs.described(path), kind="transactions", name="f",
                         settings=Settings(), actor="test")  # fmt: skip
    rival: list[Import] = []

    def overtake(now: Import) -> None:
        if not rival:
            rival.append(jobs.work(engine, config, job.id, path))

    with pytest.raises(jobs.TakenOver):
        jobs.work(engine, config, job.id, path, progress=overtake)
    with db.transaction(engine) as session:
        done = jobs.get(session, job.id)
    assert (done.state, done.rows, done.stored, done.known) == ("done", 2500, 2500, 0)


def test_parquet_reads_as_csv_does(engine: Engine, config: Config, tmp_path: Path) -> None:
    rows = 2500
    table = pa.table(
        {
            "unit": pa.array([f"u{n}" for n in range(rows)]),
            "product_id": pa.array(np.arange(rows)),
            "paid": pa.array([f"{n}.10" for n in range(rows)]).cast(pa.decimal128(12, 2)),
            "quantity": pa.array([None if n == 3 else 2 for n in range(rows)], pa.int8()),
            "bought_at": pa.array(
                [dt.datetime(2026, 1, 1) + dt.timedelta(minutes=n) for n in range(rows)],
                pa.timestamp("us"),
            ),
        }
    )
    path = tmp_path / "receipts.parquet"
    pq.write_table(table, path)
    job = sent(engine, config, path, zone="Europe/Berlin")
    assert (job.state, job.stored, job.rejected) == ("done", rows, 0), refusals(engine, job)
    assert job.quality["imputed"] == {"quantity": 1}
    with db.transaction(engine) as session:
        row = session.scalars(select(Transaction).where(Transaction.product_id == "3")).one()
        assert (row.quantity, row.paid_minor) == (1, 310)
        assert row.bought_at == dt.datetime(2025, 12, 31, 23, 3, tzinfo=dt.UTC)


def test_a_parquet_file_of_few_bytes_that_stands_for_gigabytes_is_refused(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    rows = 200_000
    bomb = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 1_000_000])
    table = pa.table({"unit": bomb, "product_id": bomb, "paid": np.ones(rows),
                      "bought_at": pa.array(["2026-01-01"] * rows)})  # fmt: skip
    path = tmp_path / "bomb.parquet"
    pq.write_table(table, path)
    assert path.stat().st_size < 3_000_000
    job = sent(engine, config, path)
    assert job.state == "failed"
    assert job.error is not None
    assert "1,000,000 bytes in the column 'unit'" in job.error


def test_customers_keep_what_a_file_does_not_tell(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    first = (
        "customer_id,Age,ZIP,vip,E-Mail,city\nana,40,01234,true,a@x.example,\nbo,,8000,no,,Bern\n"
    )
    job = sent(engine, config, written(tmp_path, first), "customers")
    assert (job.stored, job.rejected) == (2, 0)
    assert job.quality["personal"] == ["E-Mail"]
    sent(engine, config, written(tmp_path, "unit,age,loyal\nana,41,yes\nana,42,yes\n"), "customers")
    with db.transaction(engine) as session:
        held = {row.unit: row.attributes for row in session.scalars(select(Customer))}
    key = config.key("unit")
    assert held == {
        pseudonym(key, "ana"): {"age": 42, "zip": "01234", "vip": True, "loyal": "yes"},
        pseudonym(key, "bo"): {"zip": 8000, "vip": "no", "city": "Bern"},
    }


def test_products_and_interactions(engine: Engine, config: Config, tmp_path: Path) -> None:
    items = "sku;title;price;cost;stock\nA-1;Tea;€ 4,99;2.10;12\nA-2;Pot;1.299,00;;\n"
    job = sent(engine, config, written(tmp_path, items), "products")
    assert (job.stored, job.rejected) == (2, 0), refusals(engine, job)
    sent(engine, config, written(tmp_path, "id,stock\nA-1,9\n"), "products")
    with db.transaction(engine) as session:
        tea, pot = session.scalars(select(Product).order_by(Product.id))
        assert (tea.name, tea.price_minor, tea.unit_cost_minor, tea.stock) == ("Tea", 499, 210, 9)
        assert (pot.price_minor, pot.unit_cost_minor, pot.stock) == (129_900, None, None)
    events = (
        "user_id,item_id,event_type,rating,timestamp\n"
        "ana,A-1,View,,1760000000\nana,A-1,review,4.5,2026-03-01T10:00:00+02:00\n"
        "ana,A-1,sniff,,1760000000\n"
    )
    job = sent(engine, config, written(tmp_path, events), "interactions")
    assert (job.stored, job.rejected) == (2, 1)
    with db.transaction(engine) as session:
        found = session.scalars(select(Interaction).order_by(Interaction.at)).all()
        assert [(one.kind, one.value) for one in found] == [("view", None), ("review", 4.5)]


def test_of_competitors_prices_the_newest_counts(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    prices = (
        "sku,seller,price,seen_at\n"
        "A-1,Acme,4.99,2026-03-02\nA-1,Acme,5.49,2026-03-03\nA-1,Acme,3.99,2026-03-01\n"
        "A-1,Bolt,4.50,2026-03-01\nA-2,Bolt,0,2026-03-01\nA-2,Bolt,,2026-03-01\n"
    )
    path = written(tmp_path, prices)
    with db.transaction(engine) as session:
        session.add(Product(id="A-1"))
    with engine.connect() as connection:
        before = connection.scalar(select(Product.updated_at))
    job = sent(engine, config, path, "competitor_prices")
    assert (job.stored, job.known, job.rejected) == (2, 2, 2)
    assert [one[1:] for one in refusals(engine, job)] == [
        ("price", "must be more than 0"),
        ("price", "is missing"),
    ]
    assert sent(engine, config, path, "competitor_prices").stored == 0
    later = written(tmp_path, "sku,seller,price,at\nA-1,Acme,5.99,2026-03-02\n")
    assert sent(engine, config, later, "competitor_prices").stored == 0, "older than what is known"
    with db.transaction(engine) as session:
        held = session.scalars(select(CompetitorPrice).order_by(CompetitorPrice.competitor))
        assert [(one.competitor, one.price_minor) for one in held] == [("Acme", 549), ("Bolt", 450)]
        after = session.scalar(select(Product.updated_at))
    assert before is not None
    assert after is not None
    assert after > before, "hosts that follow the catalogue are told"
    with pytest.raises(Invalid, match="price or price_minor, which competitor prices need"):
        jobs.check(written(tmp_path, "sku,seller,at\n"), "competitor_prices", Settings())


def test_an_import_of_receipts_can_be_undone(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    kept = sent(engine, config, written(tmp_path, HEADER + good(3)))
    job = sent(engine, config, written(tmp_path, HEADER + good(10)))
    assert (job.stored, job.known) == (7, 3)
    with db.transaction(engine) as session:
        assert jobs.undo(session, job.id, actor="test").state == "undone"
    assert count(engine, Transaction) == kept.stored == 3
    people = sent(engine, config, written(tmp_path, "unit,age\na,1\n"), "customers")
    with db.transaction(engine) as session, pytest.raises(Conflict):
        jobs.undo(session, people.id, actor="test")


def test_only_files_of_no_use_are_dropped(engine: Engine, config: Config, tmp_path: Path) -> None:
    done = sent(engine, config, written(tmp_path, HEADER + good(1)))
    folder = jobs.folder(config)
    for name in (str(done.id), "71", "72", "receiving-ab"):
        written(folder, HEADER, name)
    written(folder, HEADER, "receiving-cd")
    for name in ("72", "receiving-cd"):
        os.utime(folder / name, (0, 0))
    jobs.tidy(config)
    assert jobs.waiting(config, engine) == []
    assert {path.name for path in folder.iterdir()} == {"71", "receiving-ab"}, (
        "the record of 71 may just be on its way"
    )


def test_a_file_beyond_the_limit_leaves_nothing_behind(config: Config, tmp_path: Path) -> None:
    path = written(tmp_path, b"x" * 5_000_000)
    with path.open("rb") as stream, pytest.raises(TooLarge, match="barter import"):
        jobs.receive(config, stream, limit=4_000_000)
    assert list(jobs.folder(config).iterdir()) == []


class Full:
    """Takes one block, and is on a full disk then."""

    def update(self, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_nothing_and_says_so(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with written(tmp_path, HEADER).open("rb") as stream, pytest.raises(Unavailable, match="disk"):
        jobs.receive(config, stream, limit=10**6)
    assert list(jobs.folder(config).iterdir()) == []
    monkeypatch.setattr(hashlib, "sha256", Full)
    with written(tmp_path, b"x" * 3_000_000).open("rb") as stream:
        with pytest.raises(Unavailable, match="disk"):
            jobs.receive(config, stream, limit=10**7)
        assert stream.read() == b"", "who still sends would not hear the refusal"
    assert list(jobs.folder(config).iterdir()) == []


def test_a_database_without_room_is_no_fault_of_the_file(
    engine: Engine, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OperationalError("COPY", {}, OSError(errno.ENOSPC, "No space left on device"))

    with written(tmp_path, HEADER + good(5)).open("rb") as stream:
        received = jobs.receive(config, stream, limit=10**9)
    job = jobs.accept(
        engine, config, received, kind="transactions", name="f", settings=Settings(), actor="test"
    )
    path = jobs.folder(config) / str(job.id)
    with monkeypatch.context() as patched:
        patched.setattr(load, "take", full)
        for _ in range(jobs.ATTEMPTS + 1):
            with pytest.raises(OperationalError):
                jobs.work(engine, config, job.id, path)
    assert jobs.work(engine, config, job.id, path).stored == 5


def test_the_command_reads_a_file_and_says_what_it_found(
    engine: Engine, config: Config, tmp_path: Path
) -> None:
    path = written(tmp_path, HEADER + good(50) + "u,p,b,1,-1,0,2026-03-01\n")
    environment = os.environ | config.environment() | {"BARTER_SECRET": config.secret.decode()}
    command = [sys.executable, "-m", "service.cli", "import", "transactions", str(path),
               "--rejects", str(tmp_path / "rejects.csv")]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "50 rows stored" in done.stdout
    assert "1 refused" in done.stdout
    assert (tmp_path / "rejects.csv").read_text().splitlines()[1].startswith("52,paid,is negative")
    assert count(engine, Transaction) == 50
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "was imported" in again.stdout
