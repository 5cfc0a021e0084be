"""The web application: every route, every error and every header in one place."""

import re
import time
import uuid

import orjson
import structlog
from flask import Flask, Response, g, request
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, IntegerConverter
from werkzeug.wrappers import Response as AnyResponse

from service import db, embedded, logs
from service.config import Config
from service.errors import BarterError, Unavailable, phrase
from service.runtime import Runtime
from service.traits.recommend import Recommender
from service.views import api, console, imports, local, manage, ops, recommendations
from service.views.contract import MAX_BODY_BYTES, PROBLEM, observe
from service.views.openapi import document

DATABASE_WAIT_SECONDS = 2
STATEMENT_SECONDS = 20.0
SLOW_SECONDS = 1.0
APIS = (api.api, local.api, *manage.APIS, imports.api, recommendations.api, ops.api)
MACHINE_PATHS = ("/v1/", "/healthz", "/readyz", "/metrics", "/openapi.json")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
log = structlog.get_logger()


class KeyConverter(BaseConverter):
    """A campaign's key in a URL; anything else is no address of ours."""

    regex = "[a-z0-9][a-z0-9._-]{0,63}"


class PublicIdConverter(BaseConverter):
    """The public part of an API key in a URL."""

    regex = "[a-z0-9]{8}"


class IdConverter(IntegerConverter):
    """A row's number in a URL, within what the database can hold."""

    def __init__(self, url_map: object) -> None:
        super().__init__(url_map, min=1, max=2**31 - 1)  # type: ignore[arg-type]


def create_app(config: Config | None = None, *, runtime: Runtime | None = None) -> Flask:
    """Return the application; with no ``config`` its settings come from the environment.

    ``runtime`` is one that the caller has started and will stop; else the application starts one
    of its own, so call this after the process has been forked.
    """
    logs.configure()
    settings = runtime.config if runtime else config or Config.from_env()
    app = Flask("service.app")
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY_BYTES,
        SECRET_KEY=settings.key("cookie"),
        SESSION_COOKIE_NAME="barter",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.url_map.converters |= {
        "key": KeyConverter, "public_id": PublicIdConverter, "id": IdConverter,
    }  # fmt: skip
    app.url_map.merge_slashes = False
    app.extensions["barter"] = runtime or _started(settings)
    app.extensions["barter.engine"] = db.engine(
        settings.database_url or embedded.address(settings),
        statement_timeout_seconds=STATEMENT_SECONDS,
        connect_timeout_seconds=DATABASE_WAIT_SECONDS,
        application_name="barter web",
    )
    app.extensions["barter.recommender"] = Recommender()
    for part in APIS:
        app.register_blueprint(part.blueprint)
    app.register_blueprint(console.blueprint)
    operations = [operation for part in APIS for operation in part.operations]
    app.extensions["barter.apis"] = APIS
    app.extensions["barter.openapi"] = orjson.dumps(document(operations))
    _handle_errors(app)
    app.before_request(_begin)
    app.after_request(_finish)
    return app


def _started(settings: Config) -> Runtime:
    runtime = Runtime(settings)
    runtime.start()
    return runtime


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    g.started = time.perf_counter()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _finish(response: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["X-Request-Id"] = g.get("request_id", "")
    if _for_machines():
        response.headers.setdefault("Cache-Control", "no-store")
    observe(response)
    _note(response)
    structlog.contextvars.unbind_contextvars("request_id")
    return response


def _note(response: Response) -> None:
    """Log the request, without its query and body; served decisions are in the log of decisions."""
    seconds = time.perf_counter() - g.get("started", time.perf_counter())
    if g.get("hot", False) and response.status_code < 400 and seconds < SLOW_SECONDS:
        return
    log.info(
        "request",
        method=request.method,
        path=request.path,
        status=response.status_code,
        milliseconds=round(seconds * 1000, 1),
        actor=g.get("actor"),
    )


def _handle_errors(app: Flask) -> None:
    """Render every failure in one way: a problem document for machines, a page for people."""

    @app.errorhandler(BarterError)
    def refused(error: BarterError) -> Response:
        return _render(error)

    @app.errorhandler(OperationalError)
    @app.errorhandler(InterfaceError)
    @app.errorhandler(PoolTimeout)
    def database_away(error: Exception) -> Response:
        log.warning("database_unavailable", error=type(error).__name__)
        return _render(Unavailable())

    @app.errorhandler(DBAPIError)
    def database_lost(error: DBAPIError) -> Response:
        if error.connection_invalidated:
            return database_away(error)
        return failed(error)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> AnyResponse:
        if error.code is None or error.code < 400:
            return error.get_response()
        made = BarterError(
            _detail(error),
            headers={name: value for name, value in error.get_headers() if name != "Content-Type"},
        )
        made.status, made.title = error.code, phrase(error.code)
        return _render(made)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        # What went wrong is for our log only: it may hold the database's words or a secret's.
        log.error("request_failed", error=type(error).__name__, exc_info=error)
        return _render(BarterError("Something failed on our side; it has been logged."))


def _detail(error: HTTPException) -> str:
    if error.code == 404:
        return "There is nothing at this address."
    if error.code == 413:
        return f"The body is larger than {MAX_BODY_BYTES:,} bytes."
    return error.description or phrase(error.code or 500)


def _for_machines() -> bool:
    return request.path.startswith(MACHINE_PATHS)


def _render(error: BarterError) -> Response:
    if not _for_machines():
        return console.error_page(error)
    made = error.problem(instance=f"urn:barter:request:{g.get('request_id', 'unknown')}")
    response = Response(orjson.dumps(made), status=error.status, content_type=PROBLEM)
    response.headers.extend(error.headers)
    return response
