"""What tests of the console share: the application, with a person of each role."""

from collections.abc import Iterator

import pytest
from flask import Flask
from sqlalchemy import Engine

from service import db
from service.app import create_app
from service.config import Config
from service.models import ROLES, User
from tests.web import HASH


@pytest.fixture
def app(config: Config, engine: Engine) -> Iterator[Flask]:
    """The application, in which a person of each role may log in."""
    with db.transaction(engine) as session:
        for role in ROLES:
            email, name = f"{role}@shop.example", role.capitalize()
            session.add(User(email=email, name=name, role=role, password_hash=HASH))
    made = create_app(config)
    yield made
    made.extensions["barter"].stop()
    made.extensions["barter.engine"].dispose()
