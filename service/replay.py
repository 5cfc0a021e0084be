"""Recompute a logged decision from what the log holds, and compare it bit for bit.

The inputs are the definition of the decision's revision, the stored snapshot, the logged segment,
mask and context, the campaign's seed and the decision's id; the same `LiveCampaign.draw` that
served the decision gives simplex and arm. A sticky decision repeats the draw of its origin, so that
is what is recomputed; a decision that was not randomised has the default arm with probability one.
"""

import functools
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from bandits import artefact, sampling
from service.definition import CampaignDefinition
from service.errors import UnknownDecision
from service.models import Campaign, CampaignRevision, Decision, Retraining, Snapshot
from service.snapshots import TOGETHER, Choice, LiveCampaign, served, whole

Past = Callable[[int, int, int], LiveCampaign]
"""(campaign, revision, snapshot) as they were; raises `Irreproducible`. See `live_at`."""


class Irreproducible(Exception):
    """What the decision was made from is no longer stored, or is not what was stored then."""


class OriginDropped(Irreproducible):
    """The decision that a sticky one repeats is so old that the log no longer has it."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A decision as logged and as recomputed."""

    decision_id: uuid.UUID
    drawn_as: uuid.UUID | None
    """The decision whose draw this is: itself, its origin when sticky, None when not random."""
    snapshot: int
    logged: Choice
    recomputed: Choice
    live: LiveCampaign
    """The campaign as it was then."""
    together: bool = False
    """Whether the simplex was computed together with others, so that its last digits differ."""
    number: float | None = None
    """The number in [0, 1) that drew the arm, None when not random."""

    @property
    def same(self) -> bool:
        """Whether arm, propensity and every entry of the simplex agree in every bit.

        What was computed together agrees to eight digits, and its arm is the one that the logged
        simplex gives.
        """
        if not self.together:
            return self.logged == self.recomputed
        pairs = zip(self.logged.simplex, self.recomputed.simplex, strict=True)
        return (
            self.logged.arm == self.recomputed.arm
            and self.logged.propensity == self.logged.simplex[self.logged.arm]
            and all(abs(one - other) < TOGETHER for one, other in pairs)
        )


def replay(session: Session, decision_id: uuid.UUID, *, past: Past | None = None) -> Replay:
    """Recompute one decision.

    ``past`` is `live_at` of the session, for who replays many and remembers what it gave.

    Raises:
        UnknownDecision: no such decision is in the database (yet).
        Irreproducible: its revision, snapshot or origin is missing or damaged.
    """
    decision = _decision(session, decision_id)
    if decision is None:
        raise UnknownDecision(decision_id)
    source = _drawn(session, decision)
    drawn = source or decision
    at = past or functools.partial(live_at, session)
    live = at(drawn.campaign_id, drawn.revision, drawn.snapshot)
    if source is None:
        recomputed = live.certain(live.definition.default_index)
    else:
        recomputed = live.draw(source.segment, source.mask, source.id.bytes, source.context)
    together = source is not None and bool(source.why.get("together"))
    number = None
    if source is not None:
        block = source.why.get("block")
        hashed = sampling.uniform_by_block if block else sampling.uniform
        number = hashed(live.seed, source.id.bytes)
        if block or together:
            simplex = tuple(decision.simplex) if together else recomputed.simplex
            arm = sampling.draw(simplex, number)
            recomputed = Choice(arm, recomputed.simplex[arm], recomputed.simplex)
    return Replay(
        decision_id=decision.id,
        drawn_as=source.id if source else None,
        snapshot=decision.snapshot,
        logged=Choice(decision.arm, decision.propensity, tuple(decision.simplex)),
        recomputed=recomputed,
        live=live,
        together=together,
        number=number,
    )


def _decision(session: Session, decision_id: uuid.UUID) -> Decision | None:
    return session.scalar(select(Decision).where(Decision.id == decision_id))


def _drawn(session: Session, decision: Decision) -> Decision | None:
    """Return the decision whose draw this one is, if it was drawn at all."""
    if decision.reason == "policy":
        return decision
    if decision.reason != "sticky":
        return None
    origin = _decision(session, decision.origin) if decision.origin else None
    if origin is None and session.get_one(Campaign, decision.campaign_id).dropped_position:
        raise OriginDropped("the decision that this one repeats has been dropped from the log")
    if origin is None or origin.unit != decision.unit or origin.campaign_id != decision.campaign_id:
        raise Irreproducible("the decision that this one repeats is not in the log")
    return origin


def live_at(session: Session, campaign_id: int, revision: int, snapshot: int) -> LiveCampaign:
    """Return a campaign at one revision and one snapshot of its past.

    Raises:
        Irreproducible: one of them is not stored, or not as it was stored then.
    """
    seed = session.scalar(select(Campaign.seed).where(Campaign.id == campaign_id))
    document = session.scalar(
        select(CampaignRevision.definition).where(
            CampaignRevision.campaign_id == campaign_id,
            CampaignRevision.revision == revision,
        )
    )
    if seed is None or document is None:
        raise Irreproducible(f"revision {revision} is not stored")
    definition = CampaignDefinition.model_validate(document)
    return LiveCampaign(
        id=campaign_id,
        revision=revision,
        state="running",
        killed=False,
        seed=seed,
        definition=definition,
        version=snapshot,
        stored=_state(session, campaign_id, snapshot, definition),
    )


def _state(
    session: Session, campaign_id: int, snapshot: int, definition: CampaignDefinition
) -> bytes | None:
    """Return the stored state, checked against its digest; None before anything was learnt."""
    if snapshot == 0:
        return None
    stored = session.get(Snapshot, (campaign_id, snapshot))
    if stored is None:
        raise Irreproducible(f"snapshot {snapshot} is not stored")
    try:
        data = whole(stored.state, _fitted(session, stored))
        policy = served(definition, data).build_policy()
        state = artefact.from_bytes(data, like=policy.init())
    except ValueError as error:
        raise Irreproducible(f"snapshot {snapshot}: {error}") from error
    if artefact.digest(state) != stored.digest:
        raise Irreproducible(f"snapshot {snapshot} does not have the digest it was given")
    return data


def _fitted(session: Session, stored: Snapshot) -> bytes | None:
    """Return what the snapshot counts on from, if anything was fitted."""
    if stored.retraining is None:
        return None
    kept = session.get(Retraining, (stored.campaign_id, stored.retraining))
    return None if kept is None else kept.state
