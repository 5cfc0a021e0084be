"""The decision log over HTTP: pages, filters, why one decision fell as it did, the report."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from service.config import Config
from tests.web import Web, fields, problem, serving


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


def read(web: Web, path: str, **query: Any) -> Any:
    return web.call("GET", path, scope="read", query_string=query)


def test_the_log_is_read_back_page_by_page_and_by_filter(web: Web) -> None:
    web.loop.launch()
    made = web.loop.shop(60)
    web.loop.carry()
    path, seen, cursor = "/v1/campaigns/spring/decisions", [], None
    while True:
        page = read(web, path, limit=25, **({"cursor": cursor} if cursor else {})).get_json()
        seen += page["decisions"]
        if (cursor := page["next"]) is None:
            break
        web.loop.shop(5)
        web.loop.carry()
    assert [one["decision_id"] for one in seen] == [str(one.decision_id) for one in made[::-1]]

    for query in ({"arm": "ten"}, {"segment": "loyal"}, {"reason": "policy"}):
        ((name, value),) = query.items()
        found = read(web, path, limit=500, **query).get_json()["decisions"]
        assert found
        assert {one[name] for one in found} == {value}
    (one,) = web.loop.decide("ana")
    web.loop.carry()
    (found,) = read(web, path, unit="ana").get_json()["decisions"]
    assert found["decision_id"] == str(one.decision_id)
    assert fields(read(web, path, arm="fifty")) == ["arm"]
    assert fields(read(web, path, segment="nobody")) == ["segment"]
    first = read(web, path, limit=1).get_json()["next"]
    assert fields(read(web, path, cursor=first, arm="ten")) == ["cursor"]


def test_a_decision_explains_itself_and_replays(web: Web) -> None:
    number = web.loop.launch(sticky_seconds=3600)
    web.loop.shop(200)
    web.loop.carry()
    web.loop.learn(number)
    web.loop.carry()
    (made,) = web.loop.decide("u1", attributes={"recency_days": 3}, exclude_arms=["twenty"])
    (kept,) = web.loop.decide("u1", attributes={"recency_days": 3})
    web.loop.outcome(made)
    web.loop.outcome(made, kind="exposed", revenue_minor=0)
    web.loop.carry()
    web.loop.learn(number)

    why = read(web, f"/v1/decisions/{made.decision_id}").get_json()
    assert why["campaign"] == "spring"
    assert why["decision"]["arm"] == made.arm
    assert why["because"].startswith("The policy drew this arm. In the segment loyal")
    chances = {one["key"]: one for one in why["arms"]}
    assert chances["twenty"]["probability"] == 0
    assert chances["twenty"]["masked"] == "excluded by the request"
    assert chances[made.arm]["probability"] == made.propensity
    assert [one["kind"] for one in why["outcomes"]] == ["purchased", "exposed"]
    assert why["reward"]["conversions"] == 1
    assert why["reward"]["revenue_minor"] == 3000
    assert why["replay"] == {
        "possible": True, "same": True, "arm": made.arm, "propensity": made.propensity,
        "note": None,
    }  # fmt: skip

    again = read(web, f"/v1/decisions/{kept.decision_id}").get_json()
    assert again["decision"]["reason"] == "sticky"
    assert again["origin"] == str(made.decision_id)
    assert again["replay"]["same"] is True
    problem(read(web, "/v1/decisions/00000001-7c4b-8f1a-9a53-52b1a5b5d0c4"), 404)
    problem(read(web, "/v1/decisions/not-a-uuid"), 404)

    snapshots = read(web, "/v1/campaigns/spring/snapshots").get_json()["snapshots"]
    assert snapshots[0]["version"] > snapshots[-1]["version"]
    assert len(snapshots[0]["digest"]) == 64
    assert why["snapshot_digest"] in [one["digest"] for one in snapshots]


def test_decisions_of_old_revisions_are_read_by_their_own_definition(web: Web) -> None:
    web.loop.launch()
    web.loop.shop(5)
    web.loop.carry()
    seen = web.call("GET", "/v1/campaigns/spring", scope="read")
    changed = seen.get_json()["definition"]
    changed["arms"][1]["name"] = "Eight"
    put = web.call("PUT", "/v1/campaigns/spring", json=changed,
                   headers={"If-Match": seen.headers["ETag"]})  # fmt: skip
    assert put.status_code == 200, put.get_data(as_text=True)
    web.loop.carry()
    web.loop.shop(5)
    web.loop.carry()
    found = read(web, "/v1/campaigns/spring/decisions").get_json()["decisions"]
    assert [one["revision"] for one in found] == [2] * 5 + [1] * 5


def test_the_report_is_json_or_csv(web: Web) -> None:
    number = web.loop.launch(holdout=0.2)
    web.loop.shop(300)
    web.loop.carry()
    web.loop.learn(number)
    path = "/v1/campaigns/spring/report"
    report = read(web, path).get_json()
    assert report["header"]["decisions"] == 300
    assert {arm["key"] for arm in report["arms"]} == {"none", "ten", "twenty"}
    as_csv = web.call("GET", path, scope="read", headers={"Accept": "text/csv"})
    assert as_csv.mimetype == "text/csv"
    assert "spring.csv" in as_csv.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(as_csv.get_data(as_text=True))))
    assert len(rows) == 3 * 3
    assert rows[0]["arm"] == "none"
    assert read(web, path, format="csv").mimetype == "text/csv"
    both = web.call("GET", f"{path}?format=json", scope="read", headers={"Accept": "text/csv"})
    assert both.mimetype == "application/json"
    assert fields(read(web, path, format="pdf")) == ["format"]
    problem(read(web, "/v1/campaigns/nope/report"), 404)


def test_policies_are_listed_with_their_options(web: Web) -> None:
    found = read(web, "/v1/policies").get_json()["policies"]
    names = {one["name"] for one in found}
    assert {"fixed_split", "epsilon_greedy", "ucb1", "gradient", "thompson_profit"} <= names
    assert all(option["help"] for one in found for option in one["options"])
