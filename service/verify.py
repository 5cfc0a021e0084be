"""Trust, but verify: a campaign's learnt state and its decisions, recomputed from its log."""

import functools
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
from service.replay import OriginDropped, live_at, replay


@dataclass(frozen=True)
class Verdict:
    """What was checked and what was found to differ.

    dropped: the position up to which the log is no longer there (`service.retention`): what was
    learnt of that cannot be recounted. lost: decisions that repeat one of those.
    """

    campaign: str
    snapshot: int
    digest: str
    rebuilt: str
    replayed: int
    differing: tuple[uuid.UUID, ...]
    dropped: int = 0
    lost: int = 0

    @property
    def recounted(self) -> bool:
        """Whether the rebuild says anything: it does where the log is whole, or agrees anyway."""
        return self.digest == self.rebuilt or not self.dropped

    @property
    def holds(self) -> bool:
        """Whether everything that could be recomputed agrees in every bit."""
        return not self.differing and (self.digest == self.rebuilt or not self.recounted)


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
        drawn = session.execute(
            select(Decision.snapshot, Decision.id)
            .where(Decision.campaign_id == campaign.id)
            .order_by(func.random())
            .limit(sample)
        ).all()
        # Snapshot by snapshot: what a policy makes of one takes far longer than a draw from it.
        past = functools.lru_cache(maxsize=8)(functools.partial(live_at, session))
        differing, lost = [], 0
        for done, (_, decision) in enumerate(sorted(drawn), start=1):
            try:
                if not replay(session, decision, past=past).same:
                    differing.append(decision)
            except OriginDropped:
                lost += 1
            if progress is not None:
                progress(done, len(drawn))
        return Verdict(
            campaign=key,
            snapshot=newest.version if newest else 0,
            digest=newest.digest if newest else rebuilt,
            rebuilt=rebuilt,
            replayed=len(drawn) - lost,
            differing=tuple(differing),
            dropped=campaign.dropped_position,
            lost=lost,
        )
