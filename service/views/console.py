"""The web console: pages for marketing teams, analysts, developers and admins.

Every page is a form or a list that works without JavaScript; scripts only spare waiting. The pages
live in the modules imported here, each on the blueprint of `console_base`.
"""

import time

import flask
from flask import request
from flask_login import current_user, login_user, logout_user

from service import users
from service.errors import BarterError
from service.views import (
    console_admin,
    console_campaigns,
    console_data,
    console_live,
    console_log,
    console_shop,
    console_traits,
)
from service.views.console_base import (
    THEMES,
    Person,
    Reply,
    actor,
    blueprint,
    database,
    error_page,
    field_messages,
    inside,
    page,
    render,
)

__all__ = [
    "blueprint",
    "console_admin",
    "console_campaigns",
    "console_data",
    "console_live",
    "console_log",
    "console_shop",
    "console_traits",
    "error_page",
]

TRIES, TRY_SECONDS = 10, 300.0
_failed: dict[str, list[float]] = {}


@page("/", needs="read")
def home() -> Reply:
    """Lead to the first page."""
    return flask.redirect(flask.url_for("console.campaign_list"))


@page("/login", needs="open", methods=("GET", "POST"))
def log_in() -> Reply:
    """Let someone in who knows their password."""
    onward = inside(request.args.get("next"))
    if request.method != "POST":
        if current_user.is_authenticated:
            return flask.redirect(onward)
        return render("login.html", next=request.args.get("next"))
    email, password = request.form.get("email", ""), request.form.get("password", "")
    if _too_many(email):
        said = "Too many attempts. Wait five minutes, then try again."
        return _refused(email, said), 429
    with database() as session:
        user = users.authenticate(session, email, password)
    if user is None:
        _failed.setdefault(email.strip().lower(), []).append(time.monotonic())
        return _refused(email, "E-mail and password do not fit together."), 401
    # A new session, so that a cookie set before logging in is worth nothing after it.
    flask.session.clear()
    _failed.pop(email.strip().lower(), None)
    login_user(Person.of(user))
    return flask.redirect(onward)


def _refused(email: str, said: str) -> str:
    return render(
        "login.html", next=request.args.get("next"), form={"email": email}, errors={"form": said}
    )


def _too_many(email: str) -> bool:
    """Tell whether an address was tried too often lately in this process."""
    address, since = email.strip().lower(), time.monotonic() - TRY_SECONDS
    recent = [when for when in _failed.get(address, []) if when > since]
    if len(_failed) > 10_000:
        _failed.clear()
    if recent:
        _failed[address] = recent
    return len(recent) >= TRIES


@page("/logout", needs="open", methods=("POST",))
def log_out() -> Reply:
    """End the session."""
    logout_user()
    flask.session.clear()
    flask.flash("You are logged out.", "good")
    return flask.redirect(flask.url_for("console.log_in"))


@page("/theme", needs="open", methods=("POST",))
def change_theme() -> Reply:
    """Remember light, dark or the computer's own choice in a cookie."""
    response = flask.redirect(inside(request.form.get("next")))
    chosen = request.form.get("theme")
    if chosen in THEMES:
        year = 365 * 86_400
        response.set_cookie("theme", chosen, max_age=year, httponly=True, samesite="Lax")
    else:
        response.delete_cookie("theme")
    return response


@page("/account", needs="read", methods=("GET", "POST"))
def account() -> Reply:
    """Show one's own account and change its password."""
    if request.method != "POST":
        return render("account.html")
    try:
        with database() as session:
            user = users.change_password(
                session,
                current_user.id,
                current=request.form.get("current", ""),
                new=request.form.get("new", ""),
                actor=actor(),
            )
    except BarterError as error:
        return render("account.html", errors=field_messages(error)), 422
    login_user(Person.of(user))
    flask.flash("Your password is changed; other browsers are logged out.", "good")
    return flask.redirect(flask.url_for("console.account"))
