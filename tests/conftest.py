"""What the tests stand on: one PostgreSQL per run, and a fresh, migrated database per test.

The server is the embedded one, in a temporary folder, or the one that DATABASE_URL names, where
the account must be allowed to create databases. Every database made here is dropped again.
"""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from service import db, embedded
from service.config import Config

SECRET = b"tests only: thirty-two bytes or more"


@contextmanager
def folder() -> Iterator[Path]:
    """A short path that PostgreSQL's account can reach, unlike pytest's own ``tmp_path``."""
    path = Path(tempfile.mkdtemp(prefix="barter-test-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """An empty data folder."""
    with folder() as path:
        yield path


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a PostgreSQL on which databases may be created."""
    if given := os.environ.get("DATABASE_URL"):
        yield db.plain_url(given)
        return
    with folder() as path:
        config = Config(data=path, secret=SECRET)
        url = embedded.start(config)
        try:
            _hurry(url)
            yield url
        finally:
            embedded.stop(config)


@pytest.fixture(scope="session")
def template(server: str) -> Iterator[str]:
    """Name of a migrated, empty database that the others are copied from."""
    with _database(server) as name:
        db.migrate(_renamed(server, name))
        yield name


@pytest.fixture
def database_url(server: str, template: str) -> Iterator[str]:
    """URL of a fresh database with the newest schema and no rows."""
    with _database(server, template=template) as name:
        yield _renamed(server, name)


@pytest.fixture
def empty_database_url(server: str) -> Iterator[str]:
    """URL of a fresh database without any table."""
    with _database(server) as name:
        yield _renamed(server, name)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the test's own database."""
    made = db.engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def config(data_folder: Path, database_url: str) -> Config:
    """Settings with a data folder and a database of the test's own."""
    return Config(data=data_folder, secret=SECRET, database_url=database_url)


def _hurry(server: str) -> None:
    """Let the server skip waiting for the disk: only a crash of the whole machine would show."""
    superuser = make_url(server).set(username=embedded.SUPERUSER)
    with psycopg.connect(
        superuser.render_as_string(hide_password=False), autocommit=True
    ) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def _database(server: str, *, template: str = "template0") -> Iterator[str]:
    name = f"barter_test_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8'").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        try:
            yield name
        finally:
            _drop(connection, name)


def _drop(connection: psycopg.Connection, name: str) -> None:
    """Drop a database; autovacuum may be in it, which only a superuser may send away."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))
            return
        except psycopg.errors.InsufficientPrivilege:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _renamed(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)
