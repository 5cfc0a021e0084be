"""API keys of app servers: made, listed, revoked. The secret is shown once and never stored."""

import datetime as dt
from collections.abc import Collection, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import audit, security
from service.errors import FieldError, Invalid, UnknownKey
from service.models import SCOPES, ApiKey


def create(
    session: Session, *, name: str, scopes: Collection[str], actor: str
) -> tuple[ApiKey, str]:
    """Store a new key and return it with its full text, which cannot be shown again.

    Raises:
        Invalid: no scope, or one that does not exist.
    """
    if not scopes or not set(scopes) <= set(SCOPES):
        message = f"must be one or more of {', '.join(SCOPES)}"
        raise Invalid(f"scopes: {message}", errors=[FieldError("scopes", message)])
    made = security.new_credentials()
    key = ApiKey(
        public_id=made.public_id,
        name=name,
        secret_sha256=security.digest(made.secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        created_by=actor,
    )
    session.add(key)
    session.flush()
    session.refresh(key)
    _note(session, key, "create", actor=actor)
    return key, made.text


def revoke(session: Session, public_id: str, *, actor: str) -> ApiKey:
    """Make a key useless for good; revoking it twice changes nothing more."""
    key = find(session, public_id, lock=True)
    if key.revoked_at is None:
        key.revoked_at = dt.datetime.now(dt.UTC)
        _note(session, key, "revoke", actor=actor)
    return key


def find(session: Session, public_id: str, *, lock: bool = False) -> ApiKey:
    """Return a key by its public id; raises `UnknownKey`."""
    query = select(ApiKey).where(ApiKey.public_id == public_id)
    key = session.scalar(query.with_for_update() if lock else query)
    if key is None:
        raise UnknownKey()
    return key


def find_live(session: Session, public_id: str) -> ApiKey | None:
    """Return a key that is not revoked, if there is one."""
    return session.scalar(
        select(ApiKey).where(ApiKey.public_id == public_id, ApiKey.revoked_at.is_(None))
    )


def listing(session: Session) -> Sequence[ApiKey]:
    """Return all keys, newest first, revoked ones too."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id.desc())).all()


def _note(session: Session, key: ApiKey, action: str, *, actor: str) -> None:
    audit.record(
        session,
        actor=actor,
        action=f"key.{action}",
        subject=f"key:{key.public_id}",
        detail={"name": key.name, "scopes": list(key.scopes)},
    )
    session.execute(select(func.pg_notify("barter", "keys")))
    session.flush()
