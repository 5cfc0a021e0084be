"""Campaigns over HTTP: create, edit with If-Match, freeze, transitions, copies, deletion."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select

from service import db
from service.config import Config
from service.models import AuditEntry, Campaign, CampaignRevision
from tests.loop import DEFINITION
from tests.web import Web, fields, problem, serving


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


def wanted(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(DEFINITION) | changes


def put(web: Web, etag: str | None, **changes: Any) -> Any:
    headers = {} if etag is None else {"If-Match": etag}
    return web.call("PUT", "/v1/campaigns/spring", json=wanted(**changes), headers=headers)


def test_a_campaign_lives_from_draft_to_end(web: Web) -> None:
    made = web.call("POST", "/v1/campaigns", json=wanted())
    assert made.status_code == 201
    assert made.headers["Location"] == "/v1/campaigns/spring"
    assert made.headers["ETag"] == '"1"'
    assert made.json is not None
    assert (made.json["state"], made.json["possible"]) == ("draft", ["launch"])

    states = [
        web.call("POST", f"/v1/campaigns/spring/{action}").get_json()["state"]
        for action in ("launch", "pause", "resume", "end")
    ]
    assert states == ["running", "paused", "running", "ended"]
    seen = web.call("GET", "/v1/campaigns/spring", scope="read").get_json()
    assert seen["started_at"]
    assert seen["ended_at"]
    assert not seen["killed_at"]
    assert seen["possible"] == []


def test_an_impossible_transition_says_what_is_possible(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted())
    refused = problem(web.call("POST", "/v1/campaigns/spring/resume"), 409)
    assert refused["detail"] == "A campaign that is draft cannot resume; possible now: launch."
    web.call("POST", "/v1/campaigns/spring/launch")
    killed = web.call("POST", "/v1/campaigns/spring/kill").get_json()
    assert killed["state"] == "ended"
    assert killed["killed_at"]
    problem(web.call("POST", "/v1/campaigns/spring/launch"), 409)
    problem(put(web, '"1"', name="New"), 409)


def test_the_schedule_decides_what_a_launch_does(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted(starts_at="2100-01-01T00:00:00Z"))
    launched = web.call("POST", "/v1/campaigns/spring/launch").get_json()
    assert launched["state"] == "scheduled"
    assert launched["started_at"] is None
    paused = web.call("POST", "/v1/campaigns/spring/pause").get_json()
    assert paused["state"] == "paused"
    assert web.call("POST", "/v1/campaigns/spring/resume").get_json()["state"] == "scheduled"
    over = wanted(key="over", ends_at="2001-01-01T00:00:00Z")
    web.call("POST", "/v1/campaigns", json=over)
    assert fields(web.call("POST", "/v1/campaigns/over/launch"), 409) == ["ends_at"]


def test_editors_cannot_overwrite_each_other_unseen(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted())
    problem(put(web, None, name="New"), 428)
    problem(put(web, '"2"', name="New"), 412)
    problem(put(web, 'W/"1"', name="New"), 412)
    changed = put(web, '"1"', name="New")
    assert changed.headers["ETag"] == '"2"'
    assert changed.json["definition"]["name"] == "New"
    problem(put(web, '"1"', name="Newer"), 412)
    assert put(web, '"2"', name="New").headers["ETag"] == '"2"', "no change, no revision"
    assert put(web, "*", name="Newest").headers["ETag"] == '"3"'
    listed = web.call("GET", "/v1/campaigns/spring/revisions", scope="read").get_json()
    names = [one["definition"]["name"] for one in listed["revisions"]]
    assert names == ["Newest", "New", "Spring"]
    with db.transaction(web.engine) as session:
        assert len(session.scalars(select(CampaignRevision)).all()) == 3


def test_what_learning_counts_by_is_frozen_by_the_launch(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted())
    assert fields(put(web, '"1"', key="other")) == ["key"]
    reordered = wanted()["arms"][::-1]
    assert put(web, '"1"', arms=reordered).status_code == 200, "a draft may change freely"
    put(web, '"2"')
    web.call("POST", "/v1/campaigns/spring/launch")
    refused = put(
        web, '"3"', currency="EUR", objective="revenue", arms=reordered, segments=[],
        policy={"name": "fixed_split"},
    )  # fmt: skip
    assert fields(refused) == ["currency", "objective", "arms", "segments"]
    assert "duplicate the campaign" in problem(refused, 422)["detail"]
    arms = wanted()["arms"]
    arms[1] |= {"name": "Eight", "cap": 0.5, "offer": {"kind": "percentage", "percent": 8}}
    arms[2] |= {"enabled": False}
    assert put(web, '"3"', arms=arms, floor=0.05).status_code == 200


def test_a_copy_starts_afresh_and_only_drafts_can_be_deleted(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted(starts_at="2026-01-01T00:00:00Z"))
    problem(web.call("POST", "/v1/campaigns", json=wanted()), 409)
    web.call("POST", "/v1/campaigns/spring/launch")
    copied = web.call("POST", "/v1/campaigns/spring/duplicate", json={"key": "again"})
    assert copied.status_code == 201
    assert copied.json is not None
    assert copied.json["definition"]["name"] == "Spring (copy)"
    assert copied.json["definition"]["starts_at"] is None
    problem(web.call("POST", "/v1/campaigns/spring/duplicate", json={"key": "again"}), 409)
    problem(web.call("DELETE", "/v1/campaigns/spring"), 409)
    problem(web.call("DELETE", "/v1/campaigns/again", headers={"If-Match": '"7"'}), 412)
    gone = web.call("DELETE", "/v1/campaigns/again", headers={"If-Match": '"1"'})
    assert (gone.status_code, gone.data) == (204, b"")
    assert fields(web.call("GET", "/v1/campaigns/again", scope="read"), 404) == ["campaign"]


def test_a_draft_that_was_asked_for_decisions_keeps_its_log(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted())
    web.loop.carry()
    assert [one.reason for one in web.loop.decide("u")] == ["draft"]
    web.loop.carry()
    problem(web.call("DELETE", "/v1/campaigns/spring"), 409)
    with db.transaction(web.engine) as session:
        assert session.scalars(select(Campaign.key)).all() == ["spring"]
        assert len(session.scalars(select(CampaignRevision)).all()) == 1


def test_every_deed_is_in_the_audit_log_with_who_did_it(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted())
    put(web, '"1"', name="New", floor=0.02)
    web.call("POST", "/v1/campaigns/spring/launch")
    problem(web.call("POST", "/v1/campaigns/spring/launch"), 409)
    log = web.call("GET", "/v1/audit?subject=campaign:spring", scope="read").get_json()
    deeds = [(one["action"], one["detail"]) for one in log["entries"]]
    assert deeds == [
        ("campaign.launch", {"from": "draft", "to": "running"}),
        ("campaign.edit", {"revision": 2, "changed": ["floor", "name"]}),
        ("campaign.create", {"revision": 1}),
    ]
    manage = web.keys["manage"].split("_")[2]
    assert {one["actor"] for one in log["entries"]} == {f"key:{manage}"}


def test_lists_are_read_page_by_page_with_signed_cursors(web: Web) -> None:
    for number in range(5):
        web.call("POST", "/v1/campaigns", json=wanted(key=f"c{number}"))
    seen, cursor = [], ""
    for _ in range(3):
        page = web.call("GET", f"/v1/campaigns?limit=2{cursor}", scope="read").get_json()
        seen.append([one["key"] for one in page["campaigns"]])
        cursor = f"&cursor={page['next']}"
    assert seen == [["c4", "c3"], ["c2", "c1"], ["c0"]]
    assert page["next"] is None
    first = web.call("GET", "/v1/campaigns?limit=2", scope="read").get_json()["next"]
    for forged in ("x", first[:-2], first + "A", "A" * len(first), first.swapcase()):
        refused = web.call("GET", f"/v1/campaigns?cursor={forged}", scope="read")
        assert fields(refused) == ["cursor"]
    assert fields(web.call("GET", f"/v1/audit?cursor={first}", scope="read")) == ["cursor"]


def test_a_failed_request_leaves_no_trace(web: Web) -> None:
    web.call("POST", "/v1/campaigns", json=wanted())
    problem(put(web, '"1"', default_arm="gone"), 422)
    problem(web.call("POST", "/v1/campaigns", json=wanted(key="Bad Key")), 422)
    with db.transaction(web.engine) as session:
        deeds = session.scalars(
            select(AuditEntry.action).where(AuditEntry.subject.like("campaign:%"))
        )
        assert deeds.all() == ["campaign.create"]
