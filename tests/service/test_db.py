"""Engines, transactions, notifications, and the schema that migrations add up to."""

import contextlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from service import db
from service.models import Base

# Alembic's comparison leaves out CHECK constraints and more, so the catalogue is compared too.
CATALOGUE = """
SELECT 'column', table_name || '.' || column_name AS name,
       concat_ws(' ', udt_name, is_nullable, column_default, identity_generation)
  FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', tablename || '.' || indexname, indexdef
  FROM pg_indexes WHERE schemaname = 'public'
ORDER BY 1, 2
"""


# The partitions of a table, which its model says nothing about.
PART = re.compile(r"(decisions|outcomes)_\d+\b")


def _catalogue(engine: Engine) -> list[tuple[str, str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(text(CATALOGUE)).all()
    return [row for row in rows if "alembic" not in row.name and not PART.match(row.name)]


def test_models_and_migrations_diff_to_nothing(engine: Engine, empty_database_url: str) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or not PART.match(name),
            },
        )
        assert compare_metadata(context, Base.metadata) == []
    modelled = db.engine(empty_database_url)
    Base.metadata.create_all(modelled)
    assert _catalogue(engine) == _catalogue(modelled)
    modelled.dispose()


def test_migrate_is_idempotent_and_several_may_call_it(empty_database_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(db.migrate, [empty_database_url] * 3))
    db.migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        # The lock went with the connections.
        held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert held.fetchone() == (0,)


def test_returning_commits_and_raising_rolls_back(engine: Engine) -> None:
    add = text("INSERT INTO spools (id, shipped) VALUES (gen_random_uuid(), 1)")
    with db.transaction(engine) as session:
        session.execute(add)
    with contextlib.suppress(ZeroDivisionError), db.transaction(engine) as session:
        session.execute(add)
        raise ZeroDivisionError
    with db.transaction(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM spools")) == 1


def test_a_statement_that_takes_too_long_is_cancelled(database_url: str) -> None:
    hasty = db.engine(database_url, statement_timeout_seconds=0.05)
    with pytest.raises(OperationalError, match="statement timeout"), hasty.connect() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    hasty.dispose()


def test_options_of_the_url_win(database_url: str) -> None:
    made = db.engine(
        f"{database_url}{'&' if '?' in database_url else '?'}options=-c%20work_mem%3D9MB"
    )
    with made.connect() as connection:
        assert connection.scalar(text("SHOW work_mem")) == "9MB"
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        assert connection.scalar(text("SHOW timezone")) == "UTC"
    made.dispose()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_a_url_is_taken(scheme: str) -> None:
    made = db.engine(f"{scheme}://ann:p%40ss@db:5433/shop?sslmode=require")
    assert made.url.drivername == "postgresql+psycopg"
    plain = db.plain_url(f"{scheme}://ann:p%40ss@db:5433/shop?sslmode=require")
    assert plain == "postgresql://ann:p%40ss@db:5433/shop?sslmode=require"


def test_an_old_server_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "POSTGRES_MIN", 990000)
    made = db.engine(database_url)
    with pytest.raises(db.UnsupportedPostgres, match="needs 15 or newer"):
        made.connect()
    made.dispose()


def test_notifications_arrive_and_go_on_after_a_broken_connection(database_url: str) -> None:
    stop = threading.Event()
    heard = db.listen(database_url, "shop", stop=stop, poll_seconds=0.05)
    assert next(heard) == ""
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_notify('shop', 'one'), pg_notify('shop', 'two')")
        assert [next(heard), next(heard)] == ["one", "two"]
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'barter listen' AND datname = current_database()"
        )
        assert next(heard) == ""
        other.execute("SELECT pg_notify('shop', 'three')")
        assert next(heard) == "three"
    assert _ends(heard, stop)


def _ends(heard: Iterator[str], stop: threading.Event) -> bool:
    stop.set()
    return next(heard, None) is None


def test_errors_do_not_repeat_what_was_to_be_written(engine: Engine) -> None:
    with pytest.raises(DBAPIError) as caught, engine.connect() as connection:
        connection.execute(text("SELECT nothing WHERE 'x' = :secret"), {"secret": "s3cret"})
    assert "s3cret" not in str(caught.value)
