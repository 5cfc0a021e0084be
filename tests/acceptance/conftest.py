"""A PostgreSQL of a test's own, which it may kill."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from service import db, embedded
from service.config import Config
from tests.conftest import SECRET, folder


@pytest.fixture
def own_database() -> Iterator[Config]:
    """A PostgreSQL of this test's own, which it may kill."""
    with folder() as path:
        own = Config(data=path, secret=SECRET)
        embedded.start(own)
        try:
            yield own
        finally:
            embedded.stop(own)


@pytest.fixture
def own_url(own_database: Config) -> str:
    return embedded.start(own_database)


@pytest.fixture
def own_engine(own_url: str) -> Iterator[Engine]:
    made = db.engine(own_url)
    yield made
    made.dispose()
