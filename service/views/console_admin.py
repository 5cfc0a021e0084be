"""Pages for developers and admins: API keys, people and the audit log."""

import json
from typing import Any

import flask
from flask import request

from service import history, keys, security, users
from service.errors import BarterError, NotFound
from service.models import ROLES, AuditEntry
from service.views.console_base import (
    PAGE_SIZE,
    Reply,
    actor,
    database,
    field_messages,
    page,
    posted,
    render,
    runtime,
)

_DEEDS = {
    "campaign.create": "Created the campaign",
    "campaign.edit": "Changed the campaign",
    "campaign.launch": "Launched the campaign",
    "campaign.pause": "Paused the campaign",
    "campaign.policy": "Another policy took over",
    "campaign.resume": "Resumed the campaign",
    "campaign.end": "Ended the campaign",
    "campaign.kill": "Stopped the campaign",
    "campaign.delete": "Deleted the draft",
    "import.begin": "Imported a file",
    "import.undo": "Took an import back",
    "key.create": "Made an API key",
    "key.revoke": "Revoked an API key",
    "user.create": "Added a person",
    "user.disable": "Locked out a person",
    "user.enable": "Let a person in again",
    "user.role": "Changed a role",
    "user.password": "Changed a password",
    "user.password_reset": "Reset a password",
}


@page("/keys", needs="keys")
def api_keys() -> Reply:
    """List the API keys and offer to make one."""
    return _keys()


@page("/keys", needs="keys", methods=("POST",))
def make_key() -> Reply:
    """Make an API key and show it, once."""
    name, scopes = request.form.get("name", "").strip(), request.form.getlist("scopes")
    if not name:
        return _keys({"name": "Say which server will use it."}, scopes), 422
    try:
        with database() as session:
            _, text = keys.create(session, name=name[:120], scopes=scopes, actor=actor())
    except BarterError as error:
        return _keys(field_messages(error), scopes), 422
    return _keys(made=text)


def _keys(
    errors: dict[str, str] | None = None, scopes: list[str] | None = None, made: str | None = None
) -> str:
    with database() as session:
        found = keys.listing(session)
    form = {"name": request.form.get("name", "") if errors else ""}
    form["scopes"] = " ".join(scopes if scopes is not None else ["decide", "reward"])
    return render("keys.html", keys=found, made=made, form=form, errors=errors or {})


@page("/keys/<public_id:public_id>/revoke", needs="keys", methods=("GET", "POST"))
def revoke_key(public_id: str) -> Reply:
    """Ask, then make a key useless."""
    with database() as session:
        key = keys.find(session, public_id)
        if request.method == "POST":
            keys.revoke(session, public_id, actor=actor())
    if request.method == "POST":
        flask.flash(f"The key “{key.name}” is revoked.", "good")
        return flask.redirect(flask.url_for("console.api_keys"))
    back = flask.url_for("console.api_keys")
    return render(
        "confirm.html",
        question=f"Revoke “{key.name}”?",
        consequences=(
            ("At once", "Every request with this key is refused from now on."),
            ("Customers", "Shops that still use it show their own usual price."),
            ("Undo", "Cannot be undone; make a new key instead."),
        ),
        button="Revoke",
        dangerous=True,
        back=back,
        steps=(("API keys", back), ("Revoke", None)),
    )


@page("/people", needs="users")
def people() -> Reply:
    """List the people and offer to add one."""
    return _people()


@page("/people", needs="users", methods=("POST",))
def add_user() -> Reply:
    """Add a person."""
    form = posted()
    if not form.get("name", "").strip():
        return _people(form, {"name": "Fill this in."}), 422
    try:
        with database() as session:
            users.create(
                session,
                email=form.get("email", ""),
                name=form["name"].strip()[:120],
                role=form.get("role", ""),
                password=form.get("password", ""),
                actor=actor(),
            )
    except BarterError as error:
        return _people(form, field_messages(error)), 422
    flask.flash(f"{form['name']} can log in now.", "good")
    return flask.redirect(flask.url_for("console.people"))


@page("/people/<id:user_id>", needs="users", methods=("POST",))
def change_user(user_id: int) -> Reply:
    """Give a person another role, lock them out or let them in again."""
    action, role = request.form.get("action"), request.form.get("role", "")
    try:
        with database() as session:
            if action == "role" and role in ROLES:
                user = users.change_role(session, user_id, role, actor=actor())
                said = f"{user.name} is {role} now."
            elif action == "disable":
                user = users.disable(session, user_id, actor=actor())
                said = f"{user.name} can no longer log in. You can let them in again below."
            elif action == "enable":
                user = users.enable(session, user_id, actor=actor())
                said = f"{user.name} can log in again."
            else:
                raise NotFound("There is no such change.")
        flask.flash(said, "good")
    except BarterError as error:
        if error.status == 404:
            raise
        flask.flash(error.detail, "bad")
    return flask.redirect(flask.url_for("console.people"))


def _people(form: dict[str, str] | None = None, errors: dict[str, str] | None = None) -> str:
    with database() as session:
        found = users.listing(session)
    shown = {name: value for name, value in (form or {}).items() if name != "password"}
    return render("users.html", people=found, form=shown, errors=errors or {})


@page("/audit", needs="audit")
def audit_log() -> Reply:
    """Show who changed what."""
    form = {name: request.args.get(name, "").strip()[:200] for name in ("actor", "subject")}
    return render("audit.html", form=form, **audit_page(form["subject"], form["actor"]))


def audit_page(subject: str = "", actor: str = "") -> dict[str, Any]:
    """Return one page of the audit log: its entries and the addresses of other pages."""
    key, listing = runtime().config.key("cursor"), f"console audit {subject} {actor}"
    cursor = request.args.get("cursor")
    before = security.read_cursor(key, listing, cursor) if cursor else None
    actor = f"user:{actor}" if "@" in actor and ":" not in actor else actor
    with database() as session:
        found = history.audit_log(
            session,
            subject=subject or None,
            actor=actor or None,
            before=before,
            limit=PAGE_SIZE + 1,
        )
    older = None
    if len(found) > PAGE_SIZE:
        older = address(cursor=security.sign_cursor(key, listing, found[PAGE_SIZE - 1].id))
    return {
        "entries": [_entry(one) for one in found[:PAGE_SIZE]],
        "newer": address(cursor=None) if cursor else None,
        "older": older,
    }


def address(**changed: str | None) -> str:
    """Return the address of this page with some of its query changed."""
    query: dict[str, Any] = {**(request.view_args or {}), **request.args.to_dict(), **changed}
    return flask.url_for(request.endpoint or "", **query)


def _entry(one: AuditEntry) -> dict[str, Any]:
    return {
        "at": one.at,
        "actor": one.actor.removeprefix("user:"),
        "action": _DEEDS.get(one.action, one.action),
        "subject": one.subject,
        "detail": _detail(one.detail),
    }


def _detail(detail: dict[str, Any]) -> str:
    """Return an entry's details in a few words."""
    parts = []
    if {"from", "to"} <= set(detail):
        parts.append(f"from {detail['from']} to {detail['to']}")
    for name, value in detail.items():
        if name in ("definition", "from", "to"):
            continue
        told = ", ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(f"{name} {told if isinstance(told, str | int) else json.dumps(told)}")
    return "; ".join(parts) or "—"
