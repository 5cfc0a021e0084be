"""Offers for a file of customers: every row once, whatever is killed, and nothing of a bad file."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, Select, func, select
from sqlalchemy.exc import OperationalError

from service import cli, db, offers, offers_command, pending
from service.config import Config
from service.customers import upsert
from service.decide import campaign_number
from service.errors import BarterError, Conflict, Invalid
from service.models import Campaign, Decision, PendingDecisions, Run
from service.pseudonyms import pseudonym
from service.verify import verify
from tests.loop import Loop, running
from tests.service.test_bulk import ARMS, FEATURES, SEGMENTS


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


@pytest.fixture
def folder(data_folder: Path) -> Path:
    return data_folder


def customers(path: Path, rows: int = 500, **changes: Any) -> Path:
    """Write a file of customers, in groups of 70 rows."""
    columns: dict[str, Any] = {
        "unit": [f"u{row}" for row in range(rows)],
        "visits": pa.array([None if row % 5 == 0 else row % 9 for row in range(rows)], pa.int32()),
        "country": pa.array(["DE", "ES", None, "FR", "IT"] * (rows // 5)).dictionary_encode(),
        "member": [row % 2 == 0 for row in range(rows)],
        "value": np.linspace(-1, 1, rows),
        "ignored": ["x"] * rows,
    } | changes
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path,
                   row_group_size=70)  # fmt: skip
    return path


def command(config: Config, folder: Path, *more: str, campaign: str = "spring") -> list[str]:
    return ["decide", "--campaign", campaign, "--input", str(folder / "in.parquet"),
            "--output", str(folder / "out.parquet"), *more]  # fmt: skip


def run(loop: Loop, config: Config, folder: Path, *more: str) -> int:
    arguments = cli.parser().parse_args(command(config, folder, *more))
    status: int = arguments.function(config, arguments)
    return status


def begun(loop: Loop, folder: Path) -> offers.Job:
    names = folder / "in.parquet", folder / "out.parquet"
    return offers.begin(loop.engine, "spring", *names, unit="unit", actor="test")


def decisions(engine: Engine) -> dict[uuid.UUID, Any]:
    with engine.connect() as connection:
        return {row.id: row for row in connection.execute(select(Decision.__table__))}


@pytest.mark.parametrize("policy", ["", "linear_thompson"])
def test_every_row_has_its_offer_and_its_decision(
    loop: Loop, config: Config, folder: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "CHUNK", 64)
    number = loop.launch(
        segments=SEGMENTS, arms=ARMS, features=FEATURES, holdout=0.1,
        **({"policy": {"name": policy}} if policy else {}),
    )  # fmt: skip
    loop.shop(30)
    loop.carry()
    loop.learn(number)
    with db.transaction(loop.engine) as session:
        unit = pseudonym(config.key("unit"), "u7")
        kept_of = {"recency_days": 3, "country": "FR"}
        upsert(session, [(unit, kept_of)], actor="test")
    before = decisions(loop.engine).keys()
    given = customers(folder / "in.parquet")
    assert run(loop, config, folder) == 0
    out = pq.read_table(folder / "out.parquet")
    assert out.column("unit").to_pylist() == pq.read_table(given).column("unit").to_pylist()
    kept = {id: row for id, row in decisions(loop.engine).items() if id not in before}
    rows = out.to_pylist()
    assert [uuid.UUID(row["decision_id"]) for row in rows] == sorted(kept)
    for row in rows:
        one = kept[uuid.UUID(row["decision_id"])]
        assert (campaign_number(one.id), one.id.version) == (number, 8)
        assert one.unit == pseudonym(config.key("unit"), row["unit"])
        assert (row["propensity"], row["reason"]) == (one.propensity, one.reason)
        assert row["arm"] == ["none", "ten", "twenty"][one.arm]
        assert json.loads(row["offer"])["kind"]
    assert {row["reason"] for row in rows} == {"policy", "holdout"}
    stored = kept[uuid.UUID(rows[7]["decision_id"])]
    assert stored.segment == 0, "by what is stored: the file has no recency"
    loop.learn(number)
    assert verify(loop.engine, "spring", sample=60).holds
    assert not list(folder.glob("out.parquet.run-*"))
    with pytest.raises(Conflict, match="is there already"):
        run(loop, config, folder)
    (folder / "out.parquet").unlink()
    with pytest.raises(Conflict, match="--again"):
        run(loop, config, folder)
    assert run(loop, config, folder, "--again") == 0
    assert len(decisions(loop.engine)) == len(before) + 1000


@pytest.mark.crash
def test_a_killed_run_goes_on_and_decides_nobody_twice(
    loop: Loop, config: Config, folder: Path
) -> None:
    loop.launch(features=FEATURES)
    customers(folder / "in.parquet", rows=10_000)
    code = ("import sys; from service import cli, offers; offers.CHUNK = 500;"
            "sys.exit(cli.main(sys.argv[1:]))")  # fmt: skip
    environment = os.environ | {
        "BARTER_DATA": str(config.data), "BARTER_SECRET": config.secret.decode(),
        "DATABASE_URL": config.database_url or "",
    }  # fmt: skip
    killed = 0
    for _ in range(30):
        child = subprocess.Popen(
            [sys.executable, "-c", code, *command(config, folder)], env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        since, wanted = _rows(loop.engine), 1_500 + 3_000 * killed
        while child.poll() is None and not (
            killed < 2 and _rows(loop.engine) >= max(wanted, since + 500)
        ):
            time.sleep(0.01)
        if child.poll() is not None:
            assert child.returncode == 0
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed += 1
    assert killed == 2
    out = pq.read_table(folder / "out.parquet")
    assert out.column("unit").to_pylist() == [f"u{row}" for row in range(10_000)]
    with loop.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Decision)) == 10_000
        units = connection.scalar(select(func.count(Decision.unit.distinct())))
        ids = {str(id) for id in connection.scalars(select(Decision.id))}
    assert units == 10_000
    assert set(out.column("decision_id").to_pylist()) == ids


def _rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.max(Run.rows))) or 0


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def aged(engine: Engine, *, seconds: float) -> None:
    """Have decisions been kept so many seconds ago that are not in the log yet."""
    with db.transaction(engine) as session:
        for one in session.scalars(select(PendingDecisions)):
            one.created_at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)


def oldest() -> Select[PendingDecisions]:
    return select(PendingDecisions).order_by(PendingDecisions.id).limit(1)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_one_killed_between_its_last_decision_and_its_output_writes_that(
    loop: Loop, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.launch()
    customers(folder / "in.parquet")

    with monkeypatch.context() as patch:
        patch.setattr(offers, "_join", killed)
        with pytest.raises(KeyboardInterrupt):
            run(loop, config, folder)
    assert not decisions(loop.engine)
    assert run(loop, config, folder) == 0
    assert len(decisions(loop.engine)) == 500
    assert pq.read_table(folder / "out.parquet").num_rows == 500


def test_what_a_stopped_command_has_not_entered_in_the_log_the_learners_process_enters(
    loop: Loop, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(offers, "CHUNK", 100)
    loop.launch()
    customers(folder / "in.parquet")
    stop, entered = threading.Event(), pending.enter

    def once(engine: Engine) -> bool:
        stop.set()
        return entered(engine)

    monkeypatch.setattr(pending, "enter", once)
    arguments = cli.parser().parse_args(command(config, folder))
    assert offers_command.run(loop.engine, config, arguments, stop) == 130
    said = capsys.readouterr().out
    monkeypatch.undo()
    left = 500 - len(decisions(loop.engine))
    assert 0 < left < 500
    assert f"Interrupted; {left} decisions are not in the log." in said
    assert "out.parquet is whole" in said
    assert "barter serve" in said
    made = pending.Enterer(loop.engine)
    aged(loop.engine, seconds=-5)
    assert not made._due(), "more may come at once"
    aged(loop.engine, seconds=9)
    assert made._due()
    again = threading.Event()
    threads = [threading.Thread(target=pending.Enterer(loop.engine).run, args=(again,), daemon=True)
               for _ in range(2)]  # fmt: skip
    for thread in threads:
        thread.start()
    until(lambda: len(decisions(loop.engine)) == 500)
    again.set()
    for thread in threads:
        thread.join()
    rows = pq.read_table(folder / "out.parquet").to_pylist()
    assert {uuid.UUID(row["decision_id"]) for row in rows} == decisions(loop.engine).keys()
    assert not made._due()


def test_a_database_that_leaves_while_the_log_is_filled_does_not_ask_for_the_command_again(
    loop: Loop, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.launch()
    customers(folder / "in.parquet")

    def away(_: Engine) -> bool:
        raise OperationalError("COPY", None, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(pending, "enter", away)
        with pytest.raises(BarterError, match=r"away.*out\.parquet is whole.*barter serve"):
            run(loop, config, folder)
    assert pq.read_table(folder / "out.parquet").num_rows == 500
    assert pending.enter(loop.engine)


def test_what_has_waited_for_long_is_entered_while_more_comes(
    loop: Loop, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "CHUNK", 250)
    loop.launch()
    customers(folder / "in.parquet")
    job = begun(loop, folder)
    with pytest.raises(KeyboardInterrupt):
        offers.work(loop.engine, job, loop.runtime.pseudonym, entering=killed)
    aged(loop.engine, seconds=-5)
    due = pending.Enterer(loop.engine)._due
    assert not due()
    with db.transaction(loop.engine) as session:
        session.scalars(oldest()).one().created_at -= dt.timedelta(minutes=11)
    assert due()


def test_a_damaged_chunk_is_told_of_and_kept(
    loop: Loop, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.launch()
    customers(folder / "in.parquet")
    job = begun(loop, folder)
    with pytest.raises(KeyboardInterrupt):
        offers.work(loop.engine, job, loop.runtime.pseudonym, entering=killed)
    told = list[str]()
    monkeypatch.setattr(pending.log, "exception", told.append)
    aged(loop.engine, seconds=9)
    with db.transaction(loop.engine) as session:
        kept = session.scalars(oldest()).one()
        whole, kept.packed = kept.packed, kept.packed[:-9]
    stop = threading.Event()
    thread = threading.Thread(target=pending.Enterer(loop.engine).run, args=(stop,), daemon=True)
    thread.start()
    until(lambda: len(told) > 1)
    assert set(told) == {"decisions_not_entered"}
    assert pending.waiting(loop.engine, job.run.id) == 500
    with db.transaction(loop.engine) as session:
        session.scalars(oldest()).one().packed = whole
    until(lambda: not pending.waiting(loop.engine, job.run.id))
    stop.set()
    thread.join()
    assert len(decisions(loop.engine)) == 500


def test_parts_that_ran_ahead_of_the_log_are_written_again(
    loop: Loop, config: Config, folder: Path
) -> None:
    loop.launch()
    customers(folder / "in.parquet")
    job = begun(loop, folder)
    (job.parts / f"{7:015d}.parquet").write_bytes(b"of a run that was killed")
    (job.parts / f"{9:015d}.new").write_bytes(b"begun")
    with offers._alone(loop.engine, job), pytest.raises(offers.TakenOver):
        offers.work(loop.engine, job, loop.runtime.pseudonym)
    offers.work(loop.engine, job, loop.runtime.pseudonym)
    assert pq.read_table(folder / "out.parquet").num_rows == 500
    assert len(decisions(loop.engine)) == 500


def test_two_processes_do_not_share_a_run(loop: Loop, config: Config, folder: Path) -> None:
    loop.launch()
    customers(folder / "in.parquet")
    one, two = begun(loop, folder), begun(loop, folder)
    assert one.run.id == two.run.id
    offers.work(loop.engine, one, loop.runtime.pseudonym)
    two.parts.mkdir()
    with pytest.raises(offers.TakenOver):
        offers.work(loop.engine, two, loop.runtime.pseudonym)
    assert len(decisions(loop.engine)) == 500


def test_a_campaign_that_ends_meanwhile_offers_nobody_anything(
    loop: Loop, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "CHUNK", 100)
    loop.launch()
    customers(folder / "in.parquet")
    job = begun(loop, folder)

    def end(rows: int) -> None:
        if rows == 100:
            loop.transition("kill")

    with pytest.raises(Conflict, match="killed"):
        offers.work(loop.engine, job, loop.runtime.pseudonym, progress=end)
    while pending.enter(loop.engine):
        pass
    assert 100 <= len(decisions(loop.engine)) < 500


def test_of_a_long_file_a_few_groups_are_in_memory(folder: Path) -> None:
    """Its rows take 40 MB, a group 1 MB."""
    path, values = folder / "long.parquet", np.random.default_rng(0).normal(size=(25, 5_000))
    table = pa.table({f"f{place}": column for place, column in enumerate(values)})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(40):
            writer.write_table(table)
    before, most = pa.total_allocated_bytes(), 0
    for _ in offers._tables(path, 12_345):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10e6


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no unit": ({"unit": None}, "unit: is not a column"),
    "a null": ({"unit": ["u"] * 499 + [None]}, "row 500 is required"),
    "an empty unit": ({"unit": ["u"] * 123 + [""] + ["u"] * 376}, "row 124 is required"),
    "control": ({"unit": ["u\x00"] + ["u"] * 499}, "row 1 must not contain control"),
    "halves": ({"unit": np.linspace(0, 1, 500)}, "unit: is of the type double"),
    "a time": ({"born": pa.array([0] * 500, pa.timestamp("us"))}, "born: is of the type timestamp"),
    "lists": ({"tags": [["a"]] * 500}, "tags: is of the type list"),
}


def test_a_bad_file_is_refused_and_changes_nothing(
    loop: Loop, config: Config, folder: Path
) -> None:
    loop.launch()
    for name, (changes, text) in BAD.items():
        customers(folder / "in.parquet", **changes)
        with pytest.raises(BarterError) as told:
            run(loop, config, folder)
        assert text in str(told.value), name
    customers(folder / "in.parquet", 0, country=pa.array([], pa.string()))
    with pytest.raises(Invalid, match="no rows"):
        run(loop, config, folder)
    whole = customers(folder / "in.parquet").read_bytes()
    for content in (b"", b"unit\nana\n", whole[:-9], whole[: len(whole) // 2]):
        (folder / "in.parquet").write_bytes(content)
        with pytest.raises(Invalid, match="not a whole file of Parquet"):
            run(loop, config, folder)
    (folder / "in.parquet").write_bytes(whole[:60] + b"\xff" * 300 + whole[360:])
    with pytest.raises(Invalid, match="damaged"):
        run(loop, config, folder)
    (folder / "in.parquet").unlink()
    with pytest.raises(Invalid, match="no file"):
        run(loop, config, folder)
    assert decisions(loop.engine) == {}
    with loop.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Run)) == 0


def test_numbers_may_name_customers(loop: Loop, config: Config, folder: Path) -> None:
    loop.launch()
    customers(folder / "in.parquet", unit=None, customer=pa.array(range(500), pa.int64()))
    assert run(loop, config, folder, "--unit", "customer") == 0
    assert {bytes(row.unit) for row in decisions(loop.engine).values()} == {
        pseudonym(config.key("unit"), str(row)) for row in range(500)
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sticky_seconds": 60}, "sticky"),
        ({"budget_minor": 10_000}, "budget"),
    ],
)
def test_campaigns_that_a_local_log_keeps_are_refused(
    loop: Loop, config: Config, folder: Path, changes: dict[str, Any], text: str
) -> None:
    arms = [ARMS[0], *({**arm, "offer": {**arm["offer"], "max_discount_minor": 500}}
                       for arm in ARMS[1:])]  # fmt: skip
    loop.launch(arms=arms, **changes)
    customers(folder / "in.parquet")
    with pytest.raises(Conflict, match=text):
        run(loop, config, folder)
    with db.transaction(loop.engine) as session:
        assert session.scalar(select(func.count()).select_from(Campaign)) == 1


def test_ids_of_a_run_differ_and_name_their_campaign() -> None:
    token = (1 << offers.TOKEN_BITS) - 1
    made = [offers.derived_ids(7, one, first, 300) for one in (0, 1, token) for first in (0, 300)]
    ids = [uuid.UUID(bytes=row.tobytes()) for part in made for row in part]
    assert len(set(ids)) == 1800
    assert all((id.version, id.variant) == (8, uuid.RFC_4122) for id in ids)
    assert all(campaign_number(id) == 7 for id in ids)
    tokens = {id.bytes[4:11] for id in ids}
    assert len(tokens) == 3
