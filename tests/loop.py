"""The whole loop in one process, on a real database: decide, carry, learn; for tests."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine

from service import campaigns, db, decide, outcomes
from service.carrier import Carrier
from service.config import Config
from service.definition import CampaignDefinition
from service.learner import Learnt, learn
from service.messages import DecisionReply, DecisionRequest, OutcomeReceipt, OutcomeRequest
from service.runtime import Runtime
from service.snapshots import LiveCampaign

DEFINITION: dict[str, Any] = {
    "key": "spring",
    "name": "Spring",
    "arms": [
        {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
        {"key": "ten", "name": "10 %", "offer": {"kind": "percentage", "percent": 10}},
        {"key": "twenty", "name": "20 %", "offer": {"kind": "percentage", "percent": 20}},
    ],
    "default_arm": "none",
    "segments": [
        {
            "key": "loyal",
            "name": "Loyal",
            "rules": [{"attribute": "recency_days", "op": "<=", "value": 14}],
        }
    ],
    "holdout": 0.0,
}
BUYS = {"none": 0.1, "ten": 0.15, "twenty": 0.35}


def definition(**changes: Any) -> CampaignDefinition:
    """Return the campaign of the tests, with some fields changed."""
    return CampaignDefinition.model_validate(copy.deepcopy(DEFINITION) | changes)


class Loop:
    """One host: its serving process, its carrier and its learner, stepped by hand."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.engine = engine
        self.runtime = Runtime(config)
        self.carrier = Carrier(self.runtime.spool, engine)
        self.random = random.Random(5)
        self._events = 0

    @property
    def live(self) -> LiveCampaign:
        """The campaign as the serving process holds it."""
        campaign = self.runtime.catalogue.campaign("spring")
        assert campaign is not None
        return campaign

    def launch(self, **changes: Any) -> int:
        """Create and launch the campaign; return its number."""
        wanted = definition(**changes)
        with db.transaction(self.engine) as session:
            campaign = campaigns.create(session, wanted, actor="test")
            campaigns.transition(session, wanted.key, "launch", actor="test")
            number = campaign.id
        self.carry()
        return number

    def transition(self, action: Any, key: str = "spring") -> None:
        """Launch, pause, resume, end or kill, and let serving know."""
        with db.transaction(self.engine) as session:
            campaigns.transition(session, key, action, actor="test")
        self.carry()

    def carry(self) -> None:
        """Carry everything up and down."""
        self.carrier.changed.set()
        while self.carrier.step():
            pass
        self.runtime.catalogue.refresh()

    def decide(self, *units: str, **request: Any) -> list[DecisionReply]:
        """Ask for an arm for every unit."""
        wanted = [DecisionRequest(campaign="spring", unit=unit, **request) for unit in units]
        return decide.decide(self.runtime, wanted)

    def outcome(self, decision: DecisionReply, **event: Any) -> OutcomeReceipt:
        """Report one event, a purchase of 30.00 unless it says otherwise."""
        self._events += 1
        told = {"event_id": f"event-{self._events}", "kind": "purchased", "revenue_minor": 3000}
        request = OutcomeRequest.model_validate(
            {"decision_id": decision.decision_id, **told, **event}
        )
        return outcomes.record(self.runtime, [request])

    def shop(self, visits: int) -> list[DecisionReply]:
        """Send visitors, some loyal, who buy the more the deeper the discount."""
        replies = []
        for _ in range(visits):
            (reply,) = self.decide(
                f"unit-{self.random.random()}",
                attributes={"recency_days": self.random.randint(0, 30)},
            )
            replies.append(reply)
            if self.random.random() < BUYS[reply.arm]:
                self.outcome(reply)
        return replies

    def learn(self, campaign: int) -> Learnt | None:
        """Learn all there is; return the last step."""
        last = None
        while (learnt := learn(self.engine, campaign, backend="numpy")) is not None:
            last = learnt
        return last


@contextmanager
def running(config: Config, engine: Engine) -> Iterator[Loop]:
    """Give a loop and close it."""
    loop = Loop(config, engine)
    try:
        yield loop
    finally:
        loop.runtime.stop()
