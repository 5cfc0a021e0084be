"""A stretch of a campaign's log as columns, which is how everything that learns reads it.

PostgreSQL packs the decisions into a string of bytes and numpy reads them from there: a Python
object for each would take most of a learner's time. `service.credits` has what they are worth.
"""

import functools
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, case, column, select

from service import queries
from service.decide import RANDOMISED
from service.definition import CampaignDefinition
from service.packed import CONTEXT, SIMPLEX, joined, sent

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FIXED = (
    *(("position", "int8send", ">i8"), ("id", "uuid_send", "V16")),
    *(("snapshot", "int8send", ">i8"), ("decided_at", "timestamptz_send", ">i8")),
    *(("revision", "int4send", ">i4"), ("segment", "int2send", ">i2"), ("arm", "int2send", ">i2")),
)
"""The columns that every decision has: name, how the server packs it, how numpy reads that."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Decisions of one campaign, in the order of their positions.

    Those that were not randomised have no simplex and no context: rows of zeros.
    """

    position: Ints  # (N,)
    id: NDArray[np.void]  # (N,) the 16 bytes of the decision's id
    snapshot: Ints
    decided_at: Ints  # (N,) microseconds since `packed.EPOCH`
    revision: Ints
    segment: Ints
    arm: Ints
    randomised: Bools
    simplex: Floats  # (N, A)
    context: Ints  # (N, D)

    def __len__(self) -> int:
        return len(self.position)

    def where(self, chosen: Any) -> "Stretch":
        """Return the decisions that an index or a mask chooses."""
        columns = {field.name: getattr(self, field.name)[chosen] for field in fields(self)}
        return Stretch(**columns)

    def __add__(self, other: "Stretch") -> "Stretch":
        """Return both, one after the other."""
        names = [field.name for field in fields(self)]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return Stretch(**{name: np.concatenate(pair) for name, pair in pairs.items()})

    @property
    def array_of_ids(self) -> str:
        """The ids as the text of an array of PostgreSQL: an object for each would cost more."""
        digits = np.frombuffer(self.id.tobytes().hex().encode(), np.uint8).reshape(-1, 32)
        listed = np.full((len(digits), 33), ord(","), np.uint8)
        listed[:, :32] = digits
        return f"{{{listed.tobytes()[:-1].decode()}}}"

    @property
    def ids(self) -> list[bytes]:
        """The ids as bytes."""
        packed = self.id.tobytes()
        return [packed[place : place + 16] for place in range(0, len(packed), 16)]


def read(connection: Connection, query: queries.Query, definition: CampaignDefinition) -> Stretch:
    """Read the decisions that one of the queries selects that start from `queries.DECISION`.

    Raises:
        ValueError: a randomised decision has other arms or features than the definition.
    """
    shape = len(definition.arms), definition.feature_width
    parts = [
        _unpacked(randomised, packed, *shape)
        for randomised, packed in connection.execute(_packed(query))
    ]
    whole = functools.reduce(Stretch.__add__, parts, _unpacked(False, b"", *shape))
    return whole.where(np.argsort(whole.position))


@functools.cache
def _columns() -> tuple[ColumnElement[bool], ColumnElement[bytes]]:
    """Return whether a decision was randomised, and the packed decisions, in any order."""
    randomised: ColumnElement[bool] = column("reason").in_(RANDOMISED)
    fixed = joined([sent(function, column(name)) for name, function, _ in FIXED])
    whole = joined([fixed, column("packed_simplex"), column("packed_context")])
    return randomised, queries.packed(case((randomised, whole), else_=fixed))


def _packed(query: queries.Query) -> queries.Query:
    randomised, packed = _columns()
    return select(randomised, packed).select_from(query.subquery()).group_by(randomised)


def _unpacked(randomised: bool, packed: bytes, arms: int, width: int) -> Stretch:
    types = {name: kind for name, _, kind in FIXED}
    parts: list[Any] = list(types.items())
    if randomised:
        parts += [("simplex", SIMPLEX, (arms,)), ("context", CONTEXT, (width,))]
    rows = np.frombuffer(packed, dtype=np.dtype(parts))
    columns: dict[str, Any] = {
        name: rows[name] if kind == "V16" else rows[name].astype(np.int64)
        for name, kind in types.items()
    }
    simplex, context = np.zeros((len(rows), arms)), np.zeros((len(rows), width), np.int64)
    if randomised:
        simplex[:], context[:] = rows["simplex"], rows["context"]
    return Stretch(
        **columns, randomised=np.full(len(rows), randomised), simplex=simplex, context=context
    )


def definition_of(connection: Connection, campaign_id: int, revision: int) -> CampaignDefinition:
    """Return a revision's definition; revisions never change, so the connection keeps them."""
    kept: dict[tuple[int, int], CampaignDefinition] = connection.info.setdefault("definitions", {})
    key = (campaign_id, revision)
    if key not in kept:
        document = connection.scalar(queries.revision_definition(campaign_id, revision))
        kept[key] = CampaignDefinition.model_validate(document)
    return kept[key]
