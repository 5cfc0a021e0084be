"""Every failure is a problem document, says nothing of our insides, and every reply is guarded."""

from collections.abc import Iterator

import pytest
from flask import Flask
from sqlalchemy import Engine, text

from service import db
from service.app import create_app
from service.config import Config
from tests.web import Web, fields, problem, serving

SECRET_WORDS = "relation customers of the secret table"


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


def test_flasks_own_errors_are_problem_documents(web: Web) -> None:
    problem(web.call("GET", "/v1/nothing", scope=None), 404)
    problem(web.call("GET", "/v1//campaigns", scope=None), 404)
    problem(web.call("GET", "/v1/campaigns/%00", scope="read"), 404)
    problem(web.call("GET", "/v1/campaigns/UPPER", scope="read"), 404)
    wrong = web.call("DELETE", "/v1/campaigns")
    problem(wrong, 405)
    assert set(wrong.headers["Allow"].split(", ")) >= {"GET", "POST"}
    problem(web.call("POST", "/healthz", scope=None), 405)


def test_only_json_of_a_bounded_size_is_read(web: Web) -> None:
    path = "/v1/decisions"
    problem(web.call("POST", path, scope="decide", data=b"{}"), 415)
    form = web.call("POST", path, scope="decide", data={"campaign": "x"})
    problem(form, 415)
    big = b'{"campaign":"' + b"a" * (2 << 20) + b'"}'
    for extra in ({}, {"content_length": None}):
        sent = web.call("POST", path, scope="decide", data=big, content_type="application/json",
                        **extra)  # fmt: skip
        problem(sent, 413)


def test_parameters_nobody_asked_for_are_refused(web: Web) -> None:
    assert fields(web.call("GET", "/v1/campaigns?page=2", scope="read")) == ["page"]
    assert fields(web.call("GET", "/v1/campaigns?limit=0", scope="read")) == ["limit"]
    assert fields(web.call("GET", "/v1/campaigns?limit=x", scope="read")) == ["limit"]
    assert fields(web.call("GET", "/v1/campaigns?limit=1&limit=2", scope="read")) == ["limit"]
    assert fields(web.call("GET", "/v1/keys?a=1")) == ["a"]


def _broken(app: Flask) -> None:
    def fail() -> str:
        raise RuntimeError(SECRET_WORDS)

    def ask() -> str:
        with db.transaction(app.extensions["barter.engine"]) as session:
            session.execute(text("SELECT * FROM no_such_table"))
        return ""

    app.add_url_rule("/v1/fail", view_func=fail)
    app.add_url_rule("/v1/ask", view_func=ask)


def test_a_failure_is_logged_and_never_leaks_its_words(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(runtime=web.loop.runtime)
    _broken(app)
    for path in ("/v1/fail", "/v1/ask"):
        capsys.readouterr()
        refused = app.test_client().get(path, headers={"X-Request-Id": "trace-me-1"})
        shown = problem(refused, 500)
        assert SECRET_WORDS not in str(shown)
        assert "no_such_table" not in str(shown)
        assert shown["instance"] == "urn:barter:request:trace-me-1"
        logged = capsys.readouterr().err
        assert "trace-me-1" in logged
        assert "request_failed" in logged
    app.extensions["barter.engine"].dispose()


def test_every_reply_is_guarded_and_named(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/healthz", "/v1/campaigns", "/openapi.json", "/docs", "/v1/nothing"):
        reply = web.call("GET", path, scope="read")
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"], path
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert len(reply.headers["X-Request-Id"]) == 32
    assert web.call("GET", "/v1/campaigns", scope="read").headers["Cache-Control"] == "no-store"
    given = web.call("GET", "/healthz", scope=None, headers={"X-Request-Id": "a b\tc" * 9})
    assert len(given.headers["X-Request-Id"]) == 32, "an odd request id is not taken over"

    web.call("GET", "/v1/customers?unit=ana@shop.example", scope="read")
    logged = capsys.readouterr().err
    assert '"path": "/v1/customers"' in logged
    assert "ana@shop" not in logged
    assert web.keys["read"] not in logged


def test_the_docs_page_names_every_operation(web: Web) -> None:
    described = web.call("GET", "/openapi.json", scope=None).get_json()
    page = web.call("GET", "/docs", scope=None).get_data(as_text=True)
    for methods in described["paths"].values():
        for operation in methods.values():
            assert f'id="{operation["operationId"]}"' in page
            assert len(operation["description"]) > 20
            assert operation["summary"]
            assert set(operation["responses"]) >= {"422", "500"}
    assert "<script" not in page
    assert "style=" not in page
