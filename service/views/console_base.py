"""What every page of the console shares: who is logged in, what they may do, how a page is made.

A page is declared with `page`, which takes the right that it needs; the guard in front of all pages
refuses everyone without it, so no view can forget to ask.
"""

import datetime as dt
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import flask
from flask import Blueprint, Flask, current_app, g, request
from flask_login import LoginManager, current_user
from flask_wtf.csrf import ValidationError, generate_csrf, validate_csrf
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Response as AnyResponse

from service import bundle
from service.db import transaction
from service.errors import BarterError, Forbidden, Malformed, Unauthorised, Unavailable
from service.imports import jobs
from service.models import User
from service.runtime import Runtime
from service.views import console_words
from service.views.contract import MAX_BODY_BYTES, MAX_FILE_BYTES

Right = Literal["open", "read", "edit", "decisions", "audit", "keys", "users"]
Reply = flask.Response | AnyResponse | str | tuple[str, int]
View = TypeVar("View", bound=Callable[..., Reply])

RIGHTS: dict[str, frozenset[Right]] = {
    "marketer": frozenset(("read", "edit", "decisions")),
    "analyst": frozenset(("read", "decisions", "audit")),
    "developer": frozenset(("read", "decisions", "audit", "keys")),
    "admin": frozenset(("read", "edit", "decisions", "audit", "keys", "users")),
}
NEEDS: dict[str, Right] = {}
_TAKES_FILE: set[str] = set()
STATIC = Path(__file__).parent.parent / "static"
THEMES = ("light", "dark")
PAGE_SIZE = 50
REPORT_SECONDS = 2.0
_MENU: tuple[tuple[str, str, str, Right], ...] = (
    ("Campaigns", "campaigns", "campaign_list", "read"),
    ("Data", "data", "data", "read"),
    ("Decisions", "decisions", "decision_log", "decisions"),
    ("Audit log", "audit", "audit_log", "audit"),
    ("API keys", "keys", "api_keys", "keys"),
    ("People", "people", "people", "users"),
    ("Account", "account", "account", "read"),
)
_SECTION = {
    "decision_log": "decision_log",
    "decision": "decision_log",
    "audit_log": "audit_log",
    "api_keys": "api_keys",
    "make_key": "api_keys",
    "revoke_key": "api_keys",
    "people": "people",
    "add_user": "people",
    "account": "account",
    "data": "data",
    "upload_file": "data",
    "import_quality": "data",
    "undo_import": "data",
    "find_customer": "data",
    "search_customer": "data",
    "customer": "data",
    "products": "data",
    "personas": "data",
    "elasticities": "data",
    "recommendations": "data",
}

blueprint = Blueprint("console", __name__, template_folder="../templates")


@dataclass(frozen=True)
class Person:
    """Who is logged in. The session names them by id and by a mark of their password."""

    id: int
    name: str
    email: str
    role: str
    mark: str

    is_authenticated = True
    is_active = True
    is_anonymous = False

    @classmethod
    def of(cls, user: User) -> "Person":
        """Return the person of a row; a changed password makes another mark."""
        mark = hashlib.sha256(user.password_hash.encode()).hexdigest()[:16]
        return cls(user.id, user.name, user.email, user.role, mark)

    def get_id(self) -> str:
        """Return what the session keeps."""
        return f"{self.id}.{self.mark}"


@dataclass(frozen=True)
class MenuItem:
    """One entry of the navigation."""

    name: str
    icon: str
    address: str
    here: bool


def page(
    rule: str, *, needs: Right, methods: tuple[str, ...] = ("GET",), takes_file: bool = False
) -> Callable[[View], View]:
    """Declare a view at an address, for people with a right; ``open`` is for everyone.

    A page that takes a file takes up to `MAX_FILE_BYTES`, of those who have the right only.
    """

    def declare(view: View) -> View:
        NEEDS[f"console.{view.__name__}"] = needs
        if takes_file:
            _TAKES_FILE.add(f"console.{view.__name__}")
        blueprint.add_url_rule(rule, endpoint=view.__name__, view_func=view, methods=list(methods))
        return view

    return declare


@contextmanager
def database() -> Iterator[Session]:
    """Open a transaction, committed at the end of the block or rolled back."""
    with transaction(current_app.extensions["barter.engine"]) as session:
        yield session


def runtime() -> Runtime:
    """Return the serving side of this process."""
    found: Runtime = current_app.extensions["barter"]
    return found


def actor() -> str:
    """Return who acts, for the audit log."""
    return f"user:{current_user.email}"


def may(right: Right) -> bool:
    """Tell whether the person who is logged in has a right."""
    return bool(current_user.is_authenticated) and right in RIGHTS.get(current_user.role, ())


def now() -> dt.datetime:
    """Return the time."""
    return dt.datetime.now(dt.UTC)


def render(template: str, **context: Any) -> str:
    """Return a page."""
    return flask.render_template(f"console/{template}", **context)


def posted() -> dict[str, str]:
    """Return the fields of the form that was sent, without ours."""
    return {
        name: value
        for name, value in request.form.items()
        if name not in ("csrf_token", "action", "revision")
    }


def inside(address: str | None) -> str:
    """Return an address of this console, or its first page if it leads anywhere else."""
    parts = urlsplit(address or "")
    outside = parts.scheme or parts.netloc or "\\" in (address or "")
    if outside or not parts.path.startswith("/") or parts.path.startswith("//"):
        return flask.url_for("console.home")
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


# ---------------------------------------------------------------- the guard


@blueprint.before_request
def guard() -> AnyResponse | None:
    """Let only those in who may see the page, and only forms that we sent."""
    needed = NEEDS[request.endpoint or ""]
    if any("\0" in value for value in (*request.args.values(), *_form(needed).values())):
        raise Malformed("A field holds a character that is no text.")
    if request.method == "POST":
        _check_form()
    if needed == "open":
        return None
    if not current_user.is_authenticated:
        if g.get("database_away"):
            raise Unavailable()
        if request.accept_mimetypes.best == "application/json":
            raise Unauthorised("Your session is over: log in again.")
        back = request.full_path.rstrip("?") if request.method == "GET" else None
        return flask.redirect(flask.url_for("console.log_in", next=back))
    if not may(needed):
        raise Forbidden(f"Your role, {current_user.role}, does not include this page.")
    return None


def _form(needed: Right) -> Mapping[str, str]:
    """Return the form that was sent, large only where a file may come with it."""
    takes_file = request.endpoint in _TAKES_FILE and may(needed)
    if takes_file:
        request.max_content_length = MAX_FILE_BYTES + MAX_BODY_BYTES
    try:
        return request.form
    except RequestEntityTooLarge:
        if takes_file:
            raise jobs.too_large(MAX_FILE_BYTES) from None
        raise


def _check_form() -> None:
    try:
        validate_csrf(request.form.get("csrf_token"))
    except ValidationError:
        raise Forbidden(
            "This form was open for too long, or did not come from this console."
            " Go back, load the page again and repeat it."
        ) from None


@blueprint.after_request
def keep_private(response: flask.Response) -> flask.Response:
    """Keep pages out of caches: they are for the person who is logged in."""
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _load(identity: str) -> Person | None:
    """Return the person of a session, unless locked out or with another password since."""
    number, _, mark = identity.partition(".")
    if not number.isdigit():
        return None
    try:
        with database() as session:
            user = session.get(User, int(number))
    except (DBAPIError, PoolTimeout):
        g.database_away = True
        return None
    if user is None or user.disabled_at is not None:
        return None
    person = Person.of(user)
    return person if person.mark == mark else None


@blueprint.record_once
def _set_up(state: Any) -> None:
    app: Flask = state.app
    login = LoginManager()
    login.session_protection = None
    login.user_loader(_load)
    login.init_app(app)
    # Of this application, not of the process: another one may stand on another database.
    app.extensions["barter.reports"] = Recent(REPORT_SECONDS)
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True


@blueprint.app_context_processor
def _context() -> dict[str, Any]:
    chosen = request.cookies.get("theme")
    return {
        "asset": asset,
        "csrf_token": generate_csrf,
        "errors": {},
        "form": {},
        "may": may,
        "navigation": _navigation() if current_user.is_authenticated else [],
        "theme": chosen if chosen in THEMES else None,
        "vega": bundle.name(),
        "words": console_words,
    }


def _navigation() -> list[MenuItem]:
    view = (request.endpoint or "").removeprefix("console.")
    section = _SECTION.get(view, "campaign_list")
    return [
        MenuItem(name, icon, flask.url_for(f"console.{target}"), section == target)
        for name, icon, target, right in _MENU
        if may(right)
    ]


# ---------------------------------------------------------------- assets and errors


def asset(name: str) -> str:
    """Return the address of a style sheet, script or picture, which changes with its contents."""
    return flask.url_for("console.asset_file", version=_version(name), name=name)


_VERSIONS: dict[str, str] = {}


def _version(name: str) -> str:
    if name not in _VERSIONS:
        # The bundle's name holds its hash already, and it may not have been built yet.
        content = name.encode() if name == bundle.name() else (STATIC / name).read_bytes()
        _VERSIONS[name] = hashlib.sha256(content).hexdigest()[:12]
    return _VERSIONS[name]


@page("/assets/<version>/<name>", needs="open")
def asset_file(version: str, name: str) -> Reply:
    """Send a style sheet, script or picture, to be kept for good."""
    if name == bundle.name():
        built = bundle.path(runtime().config.data / "cache")
        response = flask.send_file(built, mimetype="text/javascript")
        response.headers["Content-Encoding"] = "gzip"
    else:
        response = flask.send_from_directory(STATIC, name)
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def error_page(error: BarterError) -> flask.Response:
    """Return the page that tells a person what went wrong and what to do."""
    title, detail = error.title, error.detail
    if error.status == 503:
        title = "The database is away for a moment"
        detail = (
            "Customers still get their offers and nothing is lost: decisions wait on this"
            " server’s disk. This page comes back as soon as the database does."
        )
    elif error.status == 404:
        title = "There is nothing here"
    elif error.status == 403:
        title = "This is not for your role"
    text = render(
        "error.html", status=error.status, title=title, detail=detail, fields=error.errors
    )
    response = flask.Response(text, status=error.status, mimetype="text/html")
    response.headers.extend(error.headers)
    response.headers["Cache-Control"] = "no-store"
    return response


# ---------------------------------------------------------------- small helpers


class Recent:
    """Keeps what is dear to compute for a few seconds, so that many open pages share it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: dict[str, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what was made for a key lately, or make it."""
        with self._lock:
            found = self._kept.get(key)
        if found is not None and time.monotonic() - found[0] < self._seconds:
            return found[1]
        made = make()
        with self._lock:
            if len(self._kept) > 64:
                self._kept.clear()
            self._kept[key] = (time.monotonic(), made)
        return made


def field_messages(error: BarterError, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the messages of an error by form field."""
    found = {
        (names or {}).get(part.field, part.field): sentence(part.message) for part in error.errors
    }
    return found or {"form": error.detail}


def sentence(message: str) -> str:
    """Return a message as a sentence, with a capital and one full stop."""
    return f"{message[:1].upper()}{message[1:].rstrip('.')}."
