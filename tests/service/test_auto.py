"""A campaign that chooses its policy: on evidence only, told in the audit log, exact throughout."""

import datetime as dt
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, select

from bandits import artefact
from service import auto, campaigns, db, decide, outcomes, queries, users
from service.config import Config
from service.credits import batch_of, credits_of
from service.errors import Invalid
from service.history import policy_now
from service.learner import Place, advance
from service.messages import DecisionRequest, OutcomeRequest
from service.models import AuditEntry, Decision
from service.replay import replay
from service.stretch import read
from service.verify import verify
from service.views import console_policy
from service.views import console_words as words
from tests import web
from tests.loop import Loop, definition, running

LATER = dt.timedelta(days=30)
CHANNELS = ("app", "mail", "web")
FEATURES: list[dict[str, Any]] = [
    {"kind": "category", "key": "channel", "name": "Channel", "values": list(CHANNELS)}
]
CHOOSING: dict[str, Any] = {
    "objective": "conversion",
    "policy": {"name": "auto"},
    "features": FEATURES,
    "segments": [],
    "floor": 0.05,
}
LIKES = dict(zip(CHANNELS, ("none", "ten", "twenty"), strict=True))


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def shop(loop: Loop, visits: int, *, liked: float, other: float = 0.1) -> None:
    """Send visitors who buy with another chance if they get what their channel likes."""
    chance = loop.random
    channels = [chance.choice(CHANNELS) for _ in range(visits)]
    asked = [
        DecisionRequest(campaign="spring", unit=f"u-{chance.random()}", attributes={"channel": one})
        for one in channels
    ]
    bought = []
    for channel, reply in zip(channels, decide.decide(loop.runtime, asked), strict=True):
        if chance.random() < (liked if reply.arm == LIKES[channel] else other):
            told = {"event_id": f"buys-{reply.decision_id}", "decision_id": reply.decision_id}
            told |= {"kind": "purchased", "revenue_minor": 3000}
            bought.append(OutcomeRequest.model_validate(told))
    if bought:
        outcomes.record(loop.runtime, bought)


def live(loop: Loop, campaign: int, rounds: int, **world: float) -> int | None:
    """Shop, learn and look, round by round; return the decisions until the policy changed."""
    chooser = auto.Chooser(loop.engine)
    before = serving(loop)
    for number in range(rounds):
        shop(loop, 125, **world)
        loop.carry()
        loop.learn(campaign)
        while chooser.step(now=dt.datetime.now(dt.UTC) + LATER):
            pass
        loop.carry()
        if serving(loop) != before:
            return (number + 1) * 125
    return None


def serving(loop: Loop) -> str:
    return loop.live.policy.name


def switches(loop: Loop) -> list[AuditEntry]:
    with db.transaction(loop.engine) as session:
        query = select(AuditEntry).where(AuditEntry.action == "campaign.policy")
        return list(session.scalars(query.order_by(AuditEntry.id)))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["conversion", "profit"])
def test_a_better_policy_takes_over_and_all_of_the_log_replays(loop: Loop, objective: str) -> None:
    campaign = loop.launch(**CHOOSING | {"objective": objective})
    assert serving(loop) == "thompson_hierarchical"
    needed = live(loop, campaign, 40, liked=0.6)
    assert serving(loop) == "linear_thompson"
    (entry,) = switches(loop)
    assert (entry.actor, entry.subject) == ("auto", "campaign:spring")
    told = entry.detail
    assert (told["from"], told["to"]) == ("thompson_hierarchical", "linear_thompson")
    assert (told["why"], told["level"], told["snapshot"]) == ("better", 0.025, loop.live.version)
    assert 250 <= told["decisions"] <= (needed or 0)
    assert 0 < told["low"] < told["gain"] < told["high"]
    assert told["e_value"] >= 40
    shop(loop, 200, liked=0.6)
    report_late(loop, campaign)
    found = verify(loop.engine, "spring", sample=400)
    assert found.holds
    assert found.replayed == 400
    with db.transaction(loop.engine) as session:
        drawn = session.scalars(select(Decision).where(Decision.reason == "policy")).all()
        assert {one.snapshot >= told["snapshot"] for one in drawn} == {True, False}
        # The later ones replay by the channel, so it is the new policy that replays them.
        last = max(drawn, key=lambda one: one.position)
        last.context = [*last.context[1:], last.context[0]]
        session.flush()
        assert not replay(session, last.id).same
        session.rollback()


@pytest.mark.slow
def test_api_and_console_say_what_serves_since_when_and_why(config: Config, engine: Engine) -> None:
    with web.serving(config, engine) as site:
        campaign = site.loop.launch(**CHOOSING)
        assert not auto.Chooser(engine).step()
        told = present(site)
        assert (told["policy"], told["change"]) == ("thompson_hierarchical", None)
        assert [one["gain"] for one in told["rivals"]] == [None, None]
        heard = said(site.loop)
        assert "The campaign began with it." in heard["Serving now"]
        assert "not enough decisions yet" in heard["Compared with it"]

        assert live(site.loop, campaign, 40, liked=0.6)
        (entry,) = switches(site.loop)
        told = present(site)
        assert (told["policy"], told["change"]) == ("linear_thompson", entry.detail)
        assert dt.datetime.fromisoformat(told["since"]) == entry.at
        live(site.loop, campaign, 3, liked=0.6)
        told = present(site)
        rivals = [one["policy"] for one in told["rivals"]]
        assert rivals == ["thompson_beta", told["change"]["from"]]
        assert all(one["low"] < one["gain"] < one["high"] for one in told["rivals"])
        heard = said(site.loop)
        assert f"{words.count(entry.detail['decisions'])} decisions showed" in heard["Serving now"]
        assert f"by +{100 * entry.detail['gain']:.2f} % per customer" in heard["Serving now"]
        assert "of being wrong in this was at most 2.5 %" in heard["Serving now"]
        assert "after 250 decisions. Too early to tell." in heard["Compared with it"]
        for scope, key, status in (("decide", "spring", 403), ("read", "none", 404)):
            path = f"/v1/campaigns/{key}/policy"
            assert site.call("GET", path, scope=scope).status_code == status


def test_the_plan_page_shows_how_barter_chose(config: Config, engine: Engine) -> None:
    with db.transaction(engine) as session:
        users.create(session, email="a@shop.example", name="Ana", role="admin", password=SECRET,
                     actor="test")  # fmt: skip
    with web.serving(config, engine) as site:
        site.loop.launch(**CHOOSING)
        found = re.search(r'name="csrf_token" value="([^"]+)"', site.client.get("/login").text)
        assert found
        form = {"email": "a@shop.example", "password": SECRET, "csrf_token": found[1]}
        assert site.client.post("/login", data=form).status_code == 302
        shop(site.loop, 50, liked=0.6)
        site.loop.carry()
        site.loop.learn(1)
        for part in ("", "/edit", "/history", "/decisions"):
            assert site.client.get(f"/campaigns/spring{part}").status_code == 200
        page = site.client.get("/campaigns/spring/plan").text
        assert "How Barter chose" in page
        assert "The campaign began with it." in page


SECRET = "a long enough password"


def present(site: web.Web) -> dict[str, Any]:
    reply = site.call("GET", "/v1/campaigns/spring/policy", scope="read")
    assert reply.status_code == 200
    told: dict[str, Any] = reply.get_json()
    return told


def said(loop: Loop) -> dict[str, str]:
    """Return what the console says about the policy, by topic."""
    with db.transaction(loop.engine) as session:
        now = policy_now(session, campaigns.get(session, "spring"))
    return {
        topic.name: " ".join(topic.sentences)
        for topic in console_policy.review(definition(**CHOOSING), now)
    }


def report_late(loop: Loop, campaign: int) -> None:
    """Let outcomes come for decisions that were made before the switch, and learn them."""
    with db.transaction(loop.engine) as session:
        old = session.scalars(select(Decision.id).order_by(Decision.position).limit(20)).all()
    for number, decision in enumerate(old):
        told: dict[str, Any] = {"event_id": f"late-{number}", "decision_id": str(decision)}
        told |= {"kind": "purchased", "revenue_minor": 1000}
        outcomes.record(loop.runtime, [OutcomeRequest.model_validate(told)])
    loop.carry()
    loop.learn(campaign)
    loop.carry()


def test_where_no_arm_is_better_for_anybody_nothing_changes(loop: Loop) -> None:
    campaign = loop.launch(**CHOOSING)
    assert live(loop, campaign, 16, liked=0.1) is None
    assert serving(loop) == "thompson_hierarchical"
    assert switches(loop) == []
    with loop.engine.connect() as connection:
        judged = {row.policy: row.evidence for row in connection.execute(queries.rivals(campaign))}
        positions = [row.position for row in connection.execute(drawn(campaign)).all()]
        rivals = connection.execute(queries.rivals(campaign)).all()
    assert judged.keys() == {"thompson_beta", "linear_thompson"}
    assert all(evidence["rows"] >= 1500 for evidence in judged.values())
    for row in rivals:
        block = positions[: positions.index(row.judged_position) + 1][-auto.BLOCK :]
        assert 0 < row.decision_position < block[0], "it was judged by what it had learnt"


def drawn(campaign: int) -> queries.Query:
    return queries.decisions_after(campaign, 0, None, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["learner.advance", "learner.publish"])
def test_a_kill_before_or_during_the_change_is_made_good(
    loop: Loop, database_url: str, moment: str
) -> None:
    campaign = loop.launch(**CHOOSING)
    chooser = auto.Chooser(loop.engine)
    assert not chooser.step(), "it begins with what it sees first"
    for _ in range(12):
        shop(loop, 125, liked=0.6)
        loop.carry()
        loop.learn(campaign)
        loop.carry()
    script = (
        "import datetime as dt, os, signal\n"
        "from service import auto, db, learner\n"
        "now = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)\n"
        f"chooser = auto.Chooser(db.engine({database_url!r}))\n"
        f"real, calls = {moment}, []\n"
        "def deadly(*args, **kwargs):\n"
        "    result, _ = real(*args, **kwargs), calls.append(1)\n"
        f"    if len(calls) == {3 if moment == 'learner.advance' else 1}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return result\n"
        f"{moment} = deadly\n"
        "while chooser.step(now=now): pass\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=os.getcwd(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    loop.carry()
    assert serving(loop) == "thompson_hierarchical"
    assert loop.decide("ana")[0].reason == "policy"
    while chooser.step(now=dt.datetime.now(dt.UTC) + LATER):
        pass
    loop.carry()
    assert serving(loop) == "linear_thompson"
    assert len(switches(loop)) == 1
    assert loop.decide("bea")[0].reason == "policy"
    loop.carry()
    loop.learn(campaign)
    assert verify(loop.engine, "spring", sample=300).holds


@pytest.mark.slow
def test_a_person_may_name_a_policy_again_and_auto_needs_new_evidence(loop: Loop) -> None:
    campaign = loop.launch(**CHOOSING)
    assert live(loop, campaign, 40, liked=0.6)
    edit(loop, {"name": "thompson_beta"})
    assert serving(loop) == "linear_thompson", "its successor's state is not there yet"
    shop(loop, 50, liked=0.6)
    loop.carry()
    loop.learn(campaign)
    chooser = auto.Chooser(loop.engine)
    while chooser.step():
        pass
    loop.carry()
    assert serving(loop) == "thompson_beta"
    assert switches(loop)[-1].detail["why"] == "named"
    shop(loop, 50, liked=0.6)
    loop.carry()
    loop.learn(campaign)
    assert verify(loop.engine, "spring", sample=1000).holds
    edit(loop, {"name": "auto"})
    while chooser.step(now=dt.datetime.now(dt.UTC) + LATER):
        pass
    loop.carry()
    assert serving(loop) == "thompson_beta", "what is known of it is older than it"
    assert live(loop, campaign, 40, liked=0.6)
    assert serving(loop) == "linear_thompson"
    assert len(switches(loop)) == 3


def edit(loop: Loop, policy: dict[str, Any]) -> None:
    wanted = definition(**CHOOSING | {"policy": policy})
    with db.transaction(loop.engine) as session:
        campaigns.update(session, "spring", wanted, actor="test")
    loop.carry()


def test_a_rival_knows_what_a_rebuild_knows_in_whatever_pieces_it_learnt(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = loop.launch(**CHOOSING)
    places = []
    for _ in range(3):
        shop(loop, 60, liked=0.6)
        report_late(loop, campaign)
        with loop.engine.connect() as connection:
            row = connection.execute(queries.newest_snapshot(campaign)).one()
            places.append(Place(row.decision_position, row.outcome_position))
    monkeypatch.setattr("service.learner.CHUNK", 17)
    plan = definition(**CHOOSING).served_by("linear_thompson")
    state, place = plan.build_policy().init(), Place(0, 0)
    with loop.engine.connect() as connection:
        for goal in places:
            while place != goal:
                state, place = advance(connection, campaign, plan, state, place, goal)
            whole = rebuild_as(connection, campaign, plan, goal)
            assert artefact.digest(state) == artefact.digest(whole)


def rebuild_as(connection: Any, campaign: int, plan: Any, goal: Place) -> Any:
    """Learn the log as it stands at a place from nothing, in one piece."""
    rows = read(connection, queries.decisions_after(campaign, 0, goal.decision, 10_000), plan)
    earned = credits_of(connection, campaign, rows, goal.outcome)
    policy = plan.build_policy()
    return policy.update(policy.init(), batch_of(plan, rows, earned))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policy": {"name": "auto", "options": {"explore": 1}}}, "policy: auto has no options"),
        ({"policy": {"name": "auto"}, "floor": 0}, "floor: must be above 0"),
    ],
)
def test_what_auto_cannot_work_with_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        definition(**changes)


def test_what_may_be_chosen_follows_objective_and_features() -> None:
    chosen = {"policy": {"name": "auto"}}
    assert definition(**chosen).choices == ("thompson_hierarchical", "thompson_profit")
    plan = definition(**chosen, objective="revenue", features=FEATURES)
    assert plan.choices == ("thompson_gaussian", "thompson_hierarchical", "linear_thompson")
    assert definition().choices == ("thompson_hierarchical",)


def test_a_launched_campaign_may_come_to_auto_only_with_sums_that_it_can_read(loop: Loop) -> None:
    loop.launch(**CHOOSING | {"policy": {"name": "linear_ucb"}})
    with pytest.raises(Invalid, match="policy"):
        edit(loop, {"name": "auto"})
    loop.launch(**CHOOSING | {"key": "summer", "policy": {"name": "linear_thompson"}})
    wanted = definition(**CHOOSING | {"key": "summer"})
    with db.transaction(loop.engine) as session:
        assert campaigns.update(session, "summer", wanted, actor="test").revision == 2
