"""People who log in to the console: created, disabled, given a role, with a password.

| role | sees | changes |
|---|---|---|
| ``marketer`` | campaigns, reports, the decision log | campaigns |
| ``analyst`` | campaigns, reports, the decision log | nothing |
| ``developer`` | campaigns, the decision log, API keys | API keys |
| ``admin`` | everything | everything, users too |

Passwords are hashed with scrypt (werkzeug's default parameters).
"""

import datetime as dt
import re
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from werkzeug.security import check_password_hash, generate_password_hash

from service import audit
from service.errors import Conflict, FieldError, Forbidden, Invalid, UnknownUser
from service.models import ROLES, User

MIN_PASSWORD, MAX_PASSWORD = 10, 200
_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,190}")
# Checked for unknown addresses, so that the time of an answer does not tell who has an account.
_NOBODY = generate_password_hash("nobody has this password")


def create(
    session: Session, *, email: str, name: str, role: str, password: str, actor: str
) -> User:
    """Store a new user.

    Raises:
        Invalid: the address, role or password cannot be taken.
        Conflict: there is a user with this address already.
    """
    address = email.strip().lower()
    if not _EMAIL.fullmatch(address):
        raise _invalid("email", "must be an e-mail address such as ana@shop.example")
    user = User(
        email=address, name=name, role=_role(role), password_hash=_hash(password, "password")
    )
    session.add(user)
    try:
        session.flush()
    except IntegrityError:
        text = "There is a user with this e-mail address already."
        raise Conflict(text, errors=[FieldError("email", "is taken already")]) from None
    session.refresh(user)
    _note(session, user, "create", actor=actor, detail={"role": role})
    return user


def authenticate(session: Session, email: str, password: str) -> User | None:
    """Return the enabled user with this address and password, if there is one."""
    user = session.scalar(select(User).where(User.email == email.strip().lower()))
    known = user is not None and user.disabled_at is None
    stored = user.password_hash if user is not None and known else _NOBODY
    right = check_password_hash(stored, password[:MAX_PASSWORD])
    return user if known and right else None


def disable(session: Session, user_id: int, *, actor: str) -> User:
    """Keep a user from logging in; raises `Conflict` for the last enabled admin."""
    user = find(session, user_id, lock=True)
    if user.disabled_at is None:
        _keep_an_admin(session, user)
        user.disabled_at = dt.datetime.now(dt.UTC)
        _note(session, user, "disable", actor=actor)
    return user


def enable(session: Session, user_id: int, *, actor: str) -> User:
    """Let a disabled user log in again."""
    user = find(session, user_id, lock=True)
    if user.disabled_at is not None:
        user.disabled_at = None
        _note(session, user, "enable", actor=actor)
    return user


def change_role(session: Session, user_id: int, role: str, *, actor: str) -> User:
    """Give a user another role; raises `Conflict` for the last enabled admin."""
    user = find(session, user_id, lock=True)
    if user.role != _role(role):
        if user.role == "admin":
            _keep_an_admin(session, user)
        before, user.role = user.role, role
        _note(session, user, "role", actor=actor, detail={"from": before, "to": role})
    return user


def change_password(session: Session, user_id: int, *, current: str, new: str, actor: str) -> User:
    """Replace a user's own password; raises `Forbidden` unless ``current`` is right."""
    user = find(session, user_id, lock=True)
    if not check_password_hash(user.password_hash, current[:MAX_PASSWORD]):
        message = "is not the user's present password"
        raise Forbidden(f"current: {message}", errors=[FieldError("current", message)])
    user.password_hash = _hash(new, "new")
    _note(session, user, "password", actor=actor)
    return user


def reset_password(session: Session, user_id: int, new: str, *, actor: str) -> User:
    """Replace the password of a user who has forgotten it."""
    user = find(session, user_id, lock=True)
    user.password_hash = _hash(new, "new")
    _note(session, user, "password_reset", actor=actor)
    return user


def find(session: Session, user_id: int, *, lock: bool = False) -> User:
    """Return a user by id; raises `UnknownUser`."""
    query = select(User).where(User.id == user_id)
    user = session.scalar(query.with_for_update() if lock else query)
    if user is None:
        raise UnknownUser()
    return user


def listing(session: Session) -> Sequence[User]:
    """Return all users by address, disabled ones too."""
    return session.scalars(select(User).order_by(User.email)).all()


def _keep_an_admin(session: Session, user: User) -> None:
    """Refuse to take the last way in; the lock makes two admins who disable each other wait."""
    admins = session.scalars(
        select(User)
        .where(User.role == "admin", User.disabled_at.is_(None))
        .order_by(User.id)
        .with_for_update()
    ).all()
    if user.role == "admin" and [admin.id for admin in admins] == [user.id]:
        raise Conflict("This is the last admin; give another user the role admin first.")


def _role(role: str) -> str:
    if role not in ROLES:
        raise _invalid("role", f"must be one of {', '.join(ROLES)}")
    return role


def _hash(password: str, field: str) -> str:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise _invalid(field, f"must have {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    return generate_password_hash(password)


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", errors=[FieldError(field, message)])


def _note(
    session: Session,
    user: User,
    action: str,
    *,
    actor: str,
    detail: dict[str, str] | None = None,
) -> None:
    audit.record(
        session,
        actor=actor,
        action=f"user.{action}",
        subject=f"user:{user.email}",
        detail=detail,
    )
    session.flush()
