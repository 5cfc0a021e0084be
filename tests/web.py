"""The real application on a real database, called in-process; for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.security import generate_password_hash
from werkzeug.test import TestResponse

from service import db, keys
from service.app import create_app
from service.config import Config
from service.models import SCOPES
from tests.loop import Loop, running

PROBLEM = "application/problem+json"

PASSWORD = "a long enough password"
# One cheap round: these tests log in many times.
HASH = generate_password_hash(PASSWORD, method="pbkdf2:sha256:1")


class Web:
    """An application with one API key per scope, and the loop behind it."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.engine = loop, loop.engine
        with db.transaction(loop.engine) as session:
            self.keys = {
                scope: keys.create(session, name=scope, scopes=[scope], actor="test")[1]
                for scope in SCOPES
            }
        loop.carry()
        self.app = create_app(runtime=loop.runtime)
        self.client: FlaskClient = self.app.test_client()

    def call(
        self, method: str, path: str, *, scope: str | None = "manage", **request: Any
    ) -> TestResponse:
        """Send one request with the key of a scope."""
        headers = dict(request.pop("headers", {}))
        if scope is not None:
            headers.setdefault("Authorization", f"Bearer {self.keys[scope]}")
        return self.client.open(path, method=method, headers=headers, **request)

    def close(self) -> None:
        """Give the application's connections back."""
        self.app.extensions["barter.engine"].dispose()


@contextmanager
def serving(config: Config, engine: Engine) -> Iterator[Web]:
    """Give an application and close it."""
    with running(config, engine) as loop:
        web = Web(loop)
        try:
            yield web
        finally:
            web.close()


def problem(response: TestResponse, status: int) -> dict[str, Any]:
    """Check that a reply is a problem document of this status, and return it."""
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == PROBLEM
    document: dict[str, Any] = response.get_json(force=True)
    assert document["status"] == status
    assert set(document) == {"type", "title", "status", "detail", "errors", "instance"}
    return document


def fields(response: TestResponse, status: int = 422) -> list[str]:
    """Return the names of the fields that a problem document refuses."""
    return [error["field"] for error in problem(response, status)["errors"]]
