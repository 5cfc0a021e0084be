"""A PostgreSQL of a test's own, which it may kill."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from service import db, embedded
from service.config import Config
from tests.conftest import SECRET, folder


@pytest.fixture
def database() -> Iterator[Config]:
    """A PostgreSQL of this test's own, which it may kill."""
    with folder() as path:
        own = Config(data=path, secret=SECRET)
        embedded.start(own)
        try:
            yield own
        finally:
            embedded.stop(own)


@pytest.fixture
def url(database: Config) -> str:
    return embedded.start(database)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = db.engine(url)
    yield made
    made.dispose()
