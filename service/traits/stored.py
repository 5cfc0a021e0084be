"""Published models out of the database, for processes that serve: no fitting code is imported."""

from typing import Any, TypeVar

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bandits import artefact
from bandits.recommender.factors import Factors
from service.models import Model
from service.traits.vectors import Taste, Tastes

SUMMARY, TASTE, DIRECTION, BEST_SELLERS = "summary", "taste", "direction", "best_sellers"
_NONE = np.zeros((0, 0), np.float32)
_NO_FACTORS = Factors.make(_NONE, _NONE, kind=0)
_NO_TASTES = Tastes(_NONE.ravel(), _NONE)
M = TypeVar("M", bound=tuple[Any, ...])


def newest(session: Session) -> Model | None:
    """Return what was found by the newest version, for people, if there is one."""
    return session.scalars(
        select(Model).where(Model.name == SUMMARY).order_by(Model.version.desc()).limit(1)
    ).first()


def newest_version(session: Session) -> int:
    """Return the number of the newest version, 0 where there is none."""
    return session.scalar(select(func.max(Model.version)).where(Model.name == SUMMARY)) or 0


def products(session: Session, version: int) -> list[str]:
    """Return the ids of the products that a version's recommender knows, in its order."""
    found = session.get(Model, (TASTE, version))
    return [] if found is None else list(found.keys)


def taste_of(session: Session, version: int) -> Taste | None:
    """Return the recommender of a version, or None where none could be fitted."""
    factors = model(session, TASTE, version, like=_NO_FACTORS)
    tastes = model(session, DIRECTION, version, like=_NO_TASTES)
    return None if factors is None or tastes is None else Taste(factors, tastes)


def best_sellers(session: Session, version: int) -> Factors | None:
    """Return what a version ranks products by instead of its recommender, if it foresaw better."""
    return model(session, BEST_SELLERS, version, like=_NO_FACTORS)


def model(session: Session, name: str, version: int, *, like: M) -> M | None:
    """Return the arrays of one version of a model, or None where there are none."""
    found = session.get(Model, (name, version))
    return None if found is None else artefact.from_bytes(found.artefact, like=like)
