"""The database: engines, the one-commit-per-use-case rule, migrations and notifications.

Any ordinary PostgreSQL ≥ 15 will do; the embedded one is the same to this module.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

POSTGRES_MIN = 150000  # as libpq numbers releases
MIGRATION_LOCK = 7_310_001
RETRY_SECONDS = 0.5
GONE_SECONDS = 6
"""After how long a peer that vanished without a word is taken to be gone, at either end.

Until then the server keeps what its session holds: the log's lock, for which all hosts wait, or a
campaign's. Linux tells after two hours and more, unless it is asked to look (tcp(7)).
"""
_OURS: dict[str, Any] = {
    "keepalives_idle": 3, "keepalives_interval": 1, "keepalives_count": GONE_SECONDS - 3,
    "tcp_user_timeout": 1000 * GONE_SECONDS,
}  # fmt: skip
_THEIRS = "".join(f" -c tcp_{name.removeprefix('tcp_')}={value}" for name, value in _OURS.items())
"""What a session asks of the server's end; a Unix socket knows none of it, and needs none."""


class UnsupportedPostgres(RuntimeError):
    """The server is older than PostgreSQL 15, or it is something else."""


def engine(
    url: str,
    *,
    pool_size: int = 4,
    statement_timeout_seconds: float = 30.0,
    connect_timeout_seconds: int = 5,
    application_name: str = "barter",
) -> Engine:
    """Make an engine on psycopg 3 for any spelling of a PostgreSQL URL.

    At most ``2 * pool_size`` connections, tested before use. A statement that takes longer than
    ``statement_timeout_seconds`` (0: no limit) is cancelled by the server, and so is a
    transaction that sits idle for a minute, or whose client has gone for `GONE_SECONDS`. Waiting
    for a connection, from the pool or from the server, ends after ``connect_timeout_seconds`` (≥ 2)
    each. Connecting raises UnsupportedPostgres below 15.
    """
    settings = (
        f"-c statement_timeout={int(statement_timeout_seconds * 1000)}"
        f" -c idle_in_transaction_session_timeout=60000 -c timezone=UTC{_THEIRS}"
    )
    location = _sqlalchemy_url(url)
    given = location.query.get("options", "")
    made = create_engine(
        location.difference_update_query(["options"]),
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=connect_timeout_seconds,
        pool_pre_ping=True,
        # What is written may be personal or a secret's hash: it has no place in our log.
        hide_parameters=True,
        connect_args=_OURS
        | {
            "application_name": application_name,
            "connect_timeout": connect_timeout_seconds,
            # What the URL asks for comes last and wins.
            "options": f"{settings} {given if isinstance(given, str) else ' '.join(given)}",
        },
    )
    event.listen(made, "connect", _check_version)
    return made


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Give one use case its session: returning commits once, raising rolls everything back.

    Nothing below the use case commits. Objects stay readable after the commit.
    """
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def migrate(url: str) -> None:
    """Bring the schema up to the newest migration; of several callers one does the work.

    Each migration is a transaction of its own: an interrupted run is taken up where it stopped.
    """
    made = engine(url, pool_size=1, statement_timeout_seconds=0, application_name="barter migrate")
    try:
        with made.connect() as connection:
            key = {"key": MIGRATION_LOCK}
            connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
            connection.commit()
            try:
                _upgrade(connection)
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
                connection.commit()
    finally:
        made.dispose()


def listen(
    url: str, channel: str, *, stop: threading.Event, poll_seconds: float = 0.5
) -> Iterator[str]:
    """Yield the payload of every NOTIFY on ``channel`` until ``stop`` is set.

    An empty payload follows every connection, the first and each one after an outage: what was
    announced before it may have been missed. ``stop`` is looked at every ``poll_seconds``.
    """
    while not stop.is_set():
        try:
            with psycopg.connect(
                plain_url(url),
                autocommit=True,
                connect_timeout=5,
                application_name="barter listen",
                **_OURS,
            ) as connection:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                yield ""
                while not stop.is_set():
                    for notice in connection.notifies(timeout=poll_seconds):
                        yield notice.payload
                        if stop.is_set():
                            return
        except psycopg.OperationalError:
            stop.wait(RETRY_SECONDS)


def plain_url(url: str) -> str:
    """Return the URL as libpq and psycopg spell it, password included.

    >>> plain_url("postgresql+psycopg://ann:pw@db/shop")
    'postgresql://ann:pw@db/shop'
    """
    return _sqlalchemy_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _sqlalchemy_url(url: str) -> URL:
    # SQLAlchemy does not know the older spelling, which hosting services still hand out.
    if url.startswith("postgres://"):
        url = "postgresql://" + url.removeprefix("postgres://")
    return make_url(url).set(drivername="postgresql+psycopg")


def _check_version(connection: Any, _record: object) -> None:
    version = connection.info.server_version
    if version < POSTGRES_MIN:
        connection.close()
        raise UnsupportedPostgres(
            f"this server is PostgreSQL {version // 10000}; Barter needs 15 or newer"
        )


def _upgrade(connection: Connection) -> None:
    # Alembic is a third of a second of imports that only a migration needs.
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = str(resources.files("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
