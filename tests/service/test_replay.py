"""A decision that was logged can be recomputed bit for bit, and a log that lies is found out."""

import datetime as dt
import functools
import uuid
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from bandits import artefact, ledger
from bandits.types import ArmSums
from service.definition import CampaignDefinition
from service.eligibility import mask_bits
from service.errors import UnknownDecision
from service.models import Campaign, CampaignRevision, Decision, Snapshot
from service.replay import Irreproducible, live_at, replay
from service.snapshots import Choice, LiveCampaign

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SEED = bytes(range(32))
DEFINITION = CampaignDefinition.model_validate(
    {
        "key": "spring",
        "name": "Spring",
        "arms": [
            {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
            {"key": "ten", "name": "10 %", "offer": {"kind": "percentage", "percent": 10}},
            {
                "key": "twenty",
                "name": "20 %",
                "offer": {"kind": "percentage", "percent": 20},
                "cap": 0.6,
            },
        ],
        "default_arm": "none",
        "segments": [
            {
                "key": "loyal",
                "name": "Loyal",
                "rules": [{"attribute": "days", "op": "<=", "value": 14}],
                "arms": {"twenty": {"exclude": True}},
            }
        ],
    }
)


def _learnt(rng: np.random.Generator) -> ArmSums:
    trials = rng.integers(1, 5000, (2, 3))
    conversions = rng.binomial(trials, 0.1)
    zeros = ledger.zeros(segments=2, arms=3)
    return zeros._replace(trials=trials, conversions=conversions, reward=conversions * 900)


def _live(version: int, stored: bytes | None) -> LiveCampaign:
    return LiveCampaign(
        id=1, revision=1, state="running", killed=False, seed=SEED, definition=DEFINITION,
        version=version, stored=stored,
    )  # fmt: skip


def _row(
    live: LiveCampaign, choice: Choice, *, id: uuid.UUID, segment: int = 1, mask: int = 7,
    reason: str = "policy", origin: uuid.UUID | None = None,
) -> dict[str, object]:  # fmt: skip
    return {
        "id": id, "campaign_id": live.id, "revision": 1, "snapshot": live.version,
        "unit": b"unit" * 4, "segment": segment, "mask": mask, "simplex": list(choice.simplex),
        "arm": choice.arm, "propensity": choice.propensity, "reason": reason, "origin": origin,
        "why": {"masked": {}}, "decided_at": NOW, "expires_at": NOW,
    }  # fmt: skip


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A campaign with two snapshots, in a session that is rolled back."""
    with Session(engine) as made:
        yield _filled(made)


def _filled(made: Session) -> Session:
    document = DEFINITION.model_dump(mode="json")
    made.add(Campaign(key="spring", definition=document, seed=SEED, state="running"))
    made.flush()
    made.add(CampaignRevision(campaign_id=1, revision=1, definition=document, author="test"))
    rng = np.random.default_rng(7)
    for version in (1, 2):
        state = _learnt(rng)
        made.add(
            Snapshot(
                campaign_id=1, version=version, revision=1,
                state=artefact.to_bytes(state, policy="thompson_beta"),
                digest=artefact.digest(state), decision_position=0, outcome_position=0,
            )
        )  # fmt: skip
    made.flush()
    return made


def _served(session: Session, version: int) -> LiveCampaign:
    stored = session.get(Snapshot, (1, version))
    return _live(version, stored.state if stored else None)


def test_logged_decisions_replay_bit_for_bit(session: Session) -> None:
    rows = []
    for number in range(300):
        live = _served(session, number % 3)
        segment = number % 2
        mask = mask_bits(DEFINITION, ["twenty"] if segment == 0 else [])
        id = uuid.UUID(int=number)
        choice = live.draw(segment, mask, id.bytes)
        rows.append(_row(live, choice, id=id, segment=segment, mask=mask))
    session.execute(insert(Decision), rows)
    past = functools.cache(functools.partial(live_at, session))
    replays = [replay(session, uuid.UUID(int=number), past=past) for number in range(300)]
    assert all(one.same for one in replays)
    assert {one.logged.arm for one in replays} == {0, 1, 2}
    assert len({one.logged.simplex for one in replays}) == 6


def test_a_sticky_decision_repeats_its_origins_draw(session: Session) -> None:
    old, origin, later = _served(session, 1), uuid.UUID(int=1), uuid.UUID(int=2)
    choice = old.draw(1, 7, origin.bytes)
    session.execute(insert(Decision), [_row(old, choice, id=origin)])
    # Meanwhile an arm was taken away; the unit keeps what it has.
    row = _row(old, choice, id=later, mask=1 << choice.arm, reason="sticky", origin=origin)
    session.execute(insert(Decision), [row])
    found = replay(session, later)
    assert found.same
    assert found.drawn_as == origin
    session.execute(update(Decision).where(Decision.id == later).values(origin=None))
    with pytest.raises(Irreproducible):
        replay(session, later)


@pytest.mark.parametrize("reason", ["holdout", "paused", "no_eligible_arm"])
def test_what_was_not_randomised_has_the_default_arm(session: Session, reason: str) -> None:
    live, id = _served(session, 2), uuid.UUID(int=5)
    session.execute(insert(Decision), [_row(live, live.certain(0), id=id, reason=reason)])
    found = replay(session, id)
    assert found.same
    assert found.drawn_as is None
    assert found.recomputed.propensity == 1.0


def test_a_log_that_does_not_fit_is_found_out(session: Session) -> None:
    live, id = _served(session, 2), uuid.UUID(int=9)
    choice = live.draw(1, 7, id.bytes)
    session.execute(insert(Decision), [_row(live, choice, id=id)])
    nudged = float(np.nextafter(choice.propensity, 0))
    session.execute(update(Decision).where(Decision.id == id).values(propensity=nudged))
    assert not replay(session, id).same
    session.execute(update(Snapshot).values(digest="0" * 64))
    session.expire_all()
    with pytest.raises(Irreproducible, match="digest"):
        replay(session, id)
    with pytest.raises(UnknownDecision):
        replay(session, uuid.UUID(int=10))
    assert session.scalar(select(Campaign.id)) == 1
