"""Trust, but verify: a campaign's learnt state and its decisions, recomputed from its log."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select

from bandits import artefact
from service import queries
from service.db import transaction
from service.errors import UnknownCampaign
from service.learner import Place, rebuild
from service.models import Campaign, Decision
from service.replay import replay


@dataclass(frozen=True)
class Verdict:
    """What was checked and what was found to differ."""

    campaign: str
    snapshot: int
    digest: str
    rebuilt: str
    replayed: int
    differing: tuple[uuid.UUID, ...]

    @property
    def holds(self) -> bool:
        """Whether everything that was recomputed agrees in every bit."""
        return self.digest == self.rebuilt and not self.differing


def verify(engine: Engine, key: str, *, sample: int, progress: Any = None) -> Verdict:
    """Rebuild a campaign's state from its log and replay a random sample of its decisions.

    What was retrained is taken as it was stored; everything counted since is counted again.

    ``progress`` is called with (done, total) after every replay.

    Raises:
        UnknownCampaign: there is no campaign of that key.
    """
    with transaction(engine) as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        campaign = session.scalar(select(Campaign).where(Campaign.key == key))
        if campaign is None:
            raise UnknownCampaign(key)
        newest = session.execute(queries.newest_snapshot(campaign.id)).one_or_none()
        place = Place(newest.decision_position, newest.outcome_position) if newest else Place(0, 0)
        rebuilt = artefact.digest(rebuild(session.connection(), campaign.id, place))
        drawn = session.scalars(
            select(Decision.id)
            .where(Decision.campaign_id == campaign.id)
            .order_by(func.random())
            .limit(sample)
        ).all()
        differing = []
        for done, decision in enumerate(drawn, start=1):
            if not replay(session, decision).same:
                differing.append(decision)
            if progress is not None:
                progress(done, len(drawn))
        return Verdict(
            campaign=key,
            snapshot=newest.version if newest else 0,
            digest=newest.digest if newest else rebuilt,
            rebuilt=rebuilt,
            replayed=len(drawn),
            differing=tuple(differing),
        )
