"""The audit log: who did what to which thing, in the transaction of the deed itself."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.models import AuditEntry


def record(
    session: Session,
    *,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Note a deed: ``actor`` such as ``user:ana@shop.example``, ``action`` such as
    ``campaign.launch``, ``subject`` such as ``campaign:spring-sale``. Never holds a secret.
    """
    session.add(AuditEntry(actor=actor, action=action, subject=subject, detail=dict(detail or {})))
