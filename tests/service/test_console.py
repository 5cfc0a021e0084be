"""The console as a program sees it: rights, forms, messages, conflicts, pages."""

import datetime as dt
import html
import itertools
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from werkzeug.test import TestResponse

from bandits import policies
from service import bundle, campaigns, db, history, keys, users
from service.charts import charts, theme
from service.config import Config
from service.definition import CampaignDefinition
from service.models import ROLES, Product
from service.replay import replay
from service.reports import campaign_report
from service.views import console_forms as forms
from service.views import console_words as words
from service.views.console_base import NEEDS, RIGHTS, inside
from service.views.console_campaigns import differences
from service.views.console_reader import Values
from tests.loop import Loop, definition, running
from tests.web import PASSWORD

EVERY_OFFER: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "percentage", "percent": 12.5, "max_discount_minor": 2050},
    {"kind": "amount", "amount_minor": 500},
    {"kind": "spend_threshold", "threshold_minor": 5000, "amount_minor": 1000},
    {"kind": "gift", "gift": "Mug", "cost_minor": 0},
    {"kind": "free_shipping", "cost_minor": 390, "threshold_minor": 2000},
    {"kind": "tiered", "tiers": [{"threshold_minor": 0, "percent": 5},
                                 {"threshold_minor": 10000, "percent": 15}]},
    {"kind": "recommended", "basket_share": 0.25, "max_discount_minor": 1500,
     "tiers": [{"items": 3, "percent": 20}, {"items": 5, "percent": 7.5}]},
]  # fmt: skip


FEATURES: list[dict[str, Any]] = [
    {"kind": "number", "key": "visits", "name": "Visits", "centre": 9.5, "scale": 1e-7},
    {"kind": "number", "key": "spend", "name": "Spend", "centre": -2.0**53, "default": 3},
    {"kind": "category", "key": "channel", "name": "Channel",
     "values": ["app", "in store, till", ' "x" ', "two\nlines", "día"]},
    {"kind": "boolean", "key": "member", "name": "Member", "default": True},
    {"kind": "boolean", "key": "días.desde", "name": "New"},
]  # fmt: skip


class Browser:
    """A test client that sends what the forms of the last page would send."""

    def __init__(self, app: Flask) -> None:
        self.client: FlaskClient = app.test_client()
        self.token = ""

    def get(self, address: str, **options: Any) -> TestResponse:
        return self._keep(self.client.get(address, **options))

    def post(self, address: str, values: dict[str, Any] | None = None) -> TestResponse:
        return self._keep(
            self.client.post(address, data={**(values or {}), "csrf_token": self.token})
        )

    def log_in(self, role: str) -> "Browser":
        self.get("/login")
        reply = self.post("/login", {"email": f"{role}@shop.example", "password": PASSWORD})
        assert reply.status_code == 302
        self.get("/account")
        return self

    def _keep(self, reply: TestResponse) -> TestResponse:
        found = re.search(r'name="csrf_token" value="([^"]+)"', reply.text)
        self.token = found[1] if found else self.token
        return reply


def everything() -> CampaignDefinition:
    """A campaign that uses every field of the form."""
    conditions = [
        {"attribute": "product_stock", "op": ">=", "value": 5},
        {"attribute": "category", "op": "!=", "value": "tea, green"},
    ]
    arms = [
        {"key": f"a{place}", "name": f"Offer {place}", "offer": offer, "enabled": place != 2,
         "cap": 0.5 if place == 1 else None, "only_if": conditions if place == 3 else []}
        for place, offer in enumerate(EVERY_OFFER)
    ]  # fmt: skip
    rules = [
        {"attribute": "recency_days", "op": "<=", "value": 14},
        {"attribute": "country", "op": "in", "value": ["ES", "PT", 7, True]},
        {"attribute": "zip", "op": "==", "value": "08001"},
        {"attribute": "vip", "op": "exists", "value": False},
        {"attribute": "spend", "op": ">", "value": 12.5},
    ]
    overrides = {"a1": {"exclude": True}, "a2": {"offer": EVERY_OFFER[6]}}
    return CampaignDefinition.model_validate(
        {
            "key": "all.of-it",
            "name": "All of it",
            "description": "Two\nlines",
            "currency": "EUR",
            "zone": "Europe/Madrid",
            "country": "ES-MD",
            "starts_at": "2027-03-01T08:00:00Z",
            "ends_at": "2027-07-01T07:30:00Z",
            "arms": arms,
            "default_arm": "a0",
            "segments": [{"key": "s", "name": "Some", "rules": rules, "arms": overrides}],
            "features": FEATURES,
            "policy": {"name": "epsilon_greedy", "options": {"epsilon": 0.2}},
            "objective": "revenue",
            "sticky_seconds": 5400,
            "attribution_seconds": 90,
            "contact_cost_minor": 7,
        }
    )


# ---------------------------------------------------------------- the form


def test_the_form_of_a_definition_reads_back_as_that_definition() -> None:
    checked = forms.check(forms.fill(everything()), key="all.of-it")
    assert checked.errors == {}
    assert checked.definition == everything()


@given(
    floor=st.integers(0, 1000).map(lambda n: n / 10_000),
    holdout=st.integers(0, 9000).map(lambda n: n / 10_000),
    basket=st.integers(1, 10**9),
    window=st.integers(1, 400 * 86_400),
)
def test_numbers_survive_the_form(floor: float, holdout: float, basket: int, window: int) -> None:
    plan = definition(floor=floor, holdout=holdout, basket_minor=basket, attribution_seconds=window)
    assert forms.check(forms.fill(plan), key="spring").definition == plan


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": " "}, "name"),
        ({"key": "Not A Key"}, "key"),
        ({"currency": "euros"}, "currency"),
        ({"zone": "Madrid"}, "zone"),
        ({"country": "Spain"}, "country"),
        ({"arms-1-percent": "120"}, "arms-1-percent"),
        ({"arms-1-percent": ""}, "arms-1-percent"),
        ({"arms-1-max_discount": "1,000"}, "arms-1-max_discount"),
        ({"arms-1-cap": "0"}, "arms-1-cap"),
        ({"arms-1-key": "none"}, "arms"),
        ({"arms-1-kind": "gift", "arms-1-cost": "1"}, "arms-1-gift"),
        (
            {"arms-1-kind": "spend_threshold", "arms-1-threshold": "1", "arms-1-amount": "2"},
            "arms-1-kind",
        ),
        ({"arms-1-kind": "amount", "arms-1-amount": "NaN"}, "arms-1-amount"),
        ({"arms-1-kind": "recommended"}, "arms-1-kind"),
        ({"arms-1-kind": "recommended", "arms-1-pick-1-percent": "9"}, "arms-1-pick-1-items"),
        ({"arms-1-kind": "recommended", "arms-1-pick-0-items": "2.5",
          "arms-1-pick-0-percent": "9"}, "arms-1-pick-0-items"),
        ({"arms-1-kind": "recommended", "arms-1-pick-0-items": "29", "arms-1-pick-0-percent": "9",
          "arms-1-pick-3-items": "2", "arms-1-pick-3-percent": "5"}, "arms-1-kind"),
        ({"arms-1-kind": "recommended", "arms-1-pick-0-items": "2", "arms-1-pick-0-percent": "9",
          "budget": "500"}, "arms-1-max_discount"),
        ({"default_arm": "9"}, "default_arm"),
        ({"floor": "60"}, "floor"),
        ({"holdout": "-1"}, "holdout"),
        ({"holdout": ""}, "holdout"),
        ({"starts_at": "2027-03-28T02:30"}, "starts_at"),
        ({"starts_at": "soon"}, "starts_at"),
        ({"starts_at": "2027-02-02T10:00", "ends_at": "2027-02-01T10:00"}, "ends_at"),
        ({"policy": "epsilon_greedy", "policy-epsilon_greedy-epsilon": "2"},
         "policy-epsilon_greedy-epsilon"),
        ({"budget": "1000"}, "arms-1-max_discount"),
        ({"attribution": "0"}, "attribution"),
        ({"sticky": "500"}, "sticky"),
        ({"arms-1-only_if-count": "1", "arms-1-only_if-0-attribute": "a",
          "arms-1-only_if-0-op": ">"}, "arms-1-only_if-0-value"),
        ({"arms-0-only_if-count": "1", "arms-0-only_if-0-attribute": "a",
          "arms-0-only_if-0-value": "b"}, "default_arm"),
        ({"segments-count": "1", "segments-0-name": "Loyal", "segments-0-rules-count": "1",
          "segments-0-rules-0-value": "1"}, "segments-0-rules-0-attribute"),
        ({"segments-count": "1", "segments-0-name": "Loyal", "segments-0-rules-count": "1",
          "segments-0-rules-0-attribute": "a", "segments-0-rules-0-op": "<",
          "segments-0-rules-0-value": "many"}, "segments-0-rules-0-value"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_field(changes: dict[str, str], field: str) -> None:
    checked = forms.check(forms.blank() | {"name": "Spring"} | changes)
    assert checked.definition is None
    assert set(checked.errors) == {field}
    assert checked.errors[field].endswith((".", "!"))
    assert "_minor" not in checked.errors[field]


def test_the_form_survives_anything_that_is_sent(app: Flask) -> None:
    browser = Browser(app).log_in("marketer")
    for values in (
        {},
        {"arms-count": "-1", "segments-count": "x"},
        {"arms-count": "9" * 400, "segments-count": "3", "segments-0-rules-0-op": "<script>"},
        {"policy": "none such", "policy-options": "{", "objective": "fame"},
        {"name": "😀 <b>", "arms-count": "2", "arms-0-kind": "bribe"},
        {"action": "remove-arm-7"},
        {"action": "add-rule-99"},
        {"action": "raise-segment-"},
        {"features-count": "9" * 400, "features-0-kind": "<b>", "features-1-kind": "category"},
        {
            "name": "x",
            "features-count": "1",
            "features-0-key": "k",
            "features-0-kind": "category",
            "features-0-values": '"\\ud800", "\\u0000", "\\',
        },
        {"action": "remove-feature-99"},
    ):
        assert browser.post("/campaigns/new", values).status_code in (200, 422), values


def test_a_nul_character_is_refused_everywhere(app: Flask) -> None:
    browser = Browser(app)
    browser.get("/login")
    assert browser.post("/login", {"email": "a\0", "password": "b"}).status_code == 400
    browser.log_in("admin")
    for address in ("/audit?actor=%00", "/decisions?reason=%00", "/campaigns?state=%00"):
        assert browser.get(address).status_code == 400
    assert browser.post("/campaigns/new", {"name": "a\0"}).status_code == 400


def test_removing_an_arm_keeps_segments_and_the_usual_offer_right() -> None:
    values = forms.change_rows(forms.fill(everything()), "remove-arm-1")
    plan = forms.check(values, key="all.of-it").definition
    assert plan is not None
    assert [arm.key for arm in plan.arms] == ["a0", "a2", "a3", "a4", "a5", "a6", "a7"]
    assert plan.segments[0].arms == {"a2": everything().segments[0].arms["a2"]}
    assert plan.default_arm == "a0"
    assert plan.arms[2].only_if == everything().arms[3].only_if


def test_rows_are_added_and_moved() -> None:
    values = forms.blank()
    for action in ("add-arm", "add-segment", "add-segment", "add-rule-1"):
        values = forms.change_rows(values, action)
    assert (values["arms-count"], values["segments-count"]) == ("3", "2")
    assert values["segments-1-rules-count"] == "2"
    values = forms.change_rows(values, "add-condition-1") | {"arms-1-only_if-0-attribute": "b"}
    values = forms.change_rows(values, "add-condition-1") | {"arms-1-only_if-1-attribute": "c"}
    values = forms.change_rows(values, "remove-condition-1-0")
    assert (values["arms-1-only_if-count"], values["arms-1-only_if-0-attribute"]) == ("1", "c")
    values["segments-1-name"] = "Second"
    assert forms.change_rows(values, "raise-segment-1")["segments-0-name"] == "Second"


def test_times_are_local_to_the_campaign() -> None:
    values = forms.blank() | {"name": "x", "starts_at": "2026-12-01T09:00"}
    plan = forms.check(values).definition
    assert plan is not None
    assert plan.starts_at == dt.datetime(2026, 12, 1, 8, tzinfo=dt.UTC)
    told = words.review(plan, dt.datetime(2026, 11, 1, tzinfo=dt.UTC))
    assert "Starts on Tuesday 1 December 2026, 09:00 Madrid time" in told[0].sentences[0]
    assert "5 % always get “No discount”" in told[1].sentences[0]


def test_differences_are_in_words() -> None:
    before = everything()
    after = before.model_copy(update={"holdout": 0.1, "budget_minor": 100_000})
    assert [(one.name, one.before, one.after) for one in differences(before, after)] == [
        ("Holdout", "5 %", "10 %"),
        ("Budget", "—", "1,000.00 EUR"),
    ]
    assert differences(before, before) == []


# ---------------------------------------------------------------- features and policies


def with_features(*rows: dict[str, str], **changes: str) -> Values:
    """The form of a new campaign with some features."""
    values = forms.blank() | {"name": "Spring", "features-count": str(len(rows))} | changes
    for row, fields in enumerate(rows):
        values |= {f"features-{row}-{name}": value for name, value in fields.items()}
    return values


VISITS = {"kind": "number", "key": "visits", "centre": "10", "scale": "5"}
CHANNEL = {"kind": "category", "key": "channel", "values": "app, web"}
MEMBER = {"kind": "boolean", "key": "member"}


def test_features_are_declared_in_the_form() -> None:
    values = with_features(VISITS, CHANNEL, MEMBER | {"unknown": "yes"}, policy="linear_ucb")
    plan = forms.check(values).definition
    assert plan is not None
    assert [one.model_dump() for one in plan.features] == [
        {"kind": "number", "key": "visits", "name": "Visits", "centre": 10, "scale": 5,
         "default": 10},
        {"kind": "category", "key": "channel", "name": "Channel", "values": ("app", "web")},
        {"kind": "boolean", "key": "member", "name": "Member", "default": True},
    ]  # fmt: skip
    told = {topic.name: topic.sentences for topic in words.review(plan, dt.datetime.now(dt.UTC))}
    assert told["Features"][1:] == (
        "Visits: a number, typically 10 ± 5.",
        "Channel: “app” or “web”.",
        "Member: yes or no, yes if unknown.",
    )
    assert "chosen by these facts" in told["Features"][0]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r\",\\ "),
                min_size=1, max_size=12),
        min_size=1, max_size=8, unique=True,
    )
)  # fmt: skip
def test_words_of_a_category_survive_the_form(values: list[str]) -> None:
    feature = {"kind": "category", "key": "k", "name": "K", "values": values}
    plan = definition(features=[feature])
    filled = forms.fill(plan)
    # What a browser does with the text of a form.
    sent = {name: re.sub("\r\n|\r|\n", "\r\n", value) for name, value in filled.items()}
    assert forms.check(sent, key=plan.key).definition == plan


@pytest.mark.parametrize(
    ("rows", "changes", "field", "remedy"),
    [
        ([VISITS | {"key": ""}], {}, "features-0-key", "Name the attribute"),
        ([VISITS, MEMBER | {"key": "visits"}], {}, "features-1-key", "rename one of the two"),
        ([VISITS, MEMBER | {"name": "Visits"}], {}, "features-1-name", "rename one of the two"),
        ([VISITS | {"key": "k" * 201}], {}, "features-0-key", "at most 200"),
        ([VISITS | {"name": "n" * 121}], {}, "features-0-name", "at most 120"),
        ([VISITS | {"centre": ""}], {}, "features-0-centre", "Fill this in"),
        ([VISITS | {"centre": "NaN"}], {}, "features-0-centre", "plain number"),
        ([VISITS | {"scale": "inf"}], {}, "features-0-scale", "plain number"),
        ([VISITS | {"scale": "1e999"}], {}, "features-0-scale", "plain number"),
        ([VISITS | {"scale": "0"}], {}, "features-0-scale", "greater than 0"),
        ([VISITS | {"scale": "-3"}], {}, "features-0-scale", "greater than 0"),
        ([VISITS | {"default": "many"}], {}, "features-0-default", "plain number"),
        ([VISITS | {"default": "9" * 16}], {}, "features-0-default", "less than or equal"),
        ([VISITS | {"kind": "text"}], {}, "features-0-kind", "number"),
        ([CHANNEL | {"values": " \r\n, "}], {}, "features-0-values", "Fill this in"),
        ([CHANNEL | {"values": "app\napp"}], {}, "features-0-values", "remove one of the two"),
        ([CHANNEL | {"values": "w" * 201}], {}, "features-0-values", "at most 200"),
        ([CHANNEL | {"values": ",".join(map(str, range(65)))}], {}, "features-0-values", "64"),
        ([], {"policy": "linear_ucb"}, "policy", "declare at least one"),
        ([VISITS], {"policy": "logistic_thompson"}, "policy", "aim “Purchases”"),
        ([], {"policy": "thompson_beta"}, "policy", "aim “Purchases”"),
        ([], {"policy": "thompson_profit", "objective": "revenue"}, "policy", "aim “Profit”"),
        ([CHANNEL | {"key": f"k{n}", "values": ",".join(map(str, range(60)))} for n in range(5)],
         {}, "features", "list fewer words"),
    ],
)  # fmt: skip
def test_a_mistake_about_features_is_told_at_its_field_with_the_remedy(
    rows: list[dict[str, str]], changes: dict[str, str], field: str, remedy: str
) -> None:
    checked = forms.check(with_features(*rows, **changes))
    assert checked.definition is None
    assert list(checked.errors) == [field]
    assert remedy in checked.errors[field]
    assert checked.errors[field].endswith(".")


def test_feature_rows_are_added_and_removed(app: Flask) -> None:
    browser = Browser(app).log_in("marketer")
    values = with_features(VISITS, CHANNEL)
    page = browser.post("/campaigns/new", values | {"action": "add-feature"})
    assert 'id="features-2-key"' in page.text
    page = browser.post("/campaigns/new", values | {"action": "remove-feature-0"})
    assert 'id="features-1-key"' not in page.text
    assert re.search(r'id="features-0-key"[^>]* value="channel"', page.text)


def test_a_campaign_with_features_is_made_and_stays_as_launched(app: Flask) -> None:
    browser = Browser(app).log_in("marketer")
    values = with_features(VISITS, CHANNEL, MEMBER, policy="linear_thompson")
    assert browser.post("/campaigns/new", values | {"action": "save"}).status_code == 302
    assert "typically 10 ± 5" in browser.get("/campaigns/spring/review").text
    assert browser.post("/campaigns/spring/review", {"revision": "1"}).status_code == 302
    page = browser.get("/campaigns/spring/edit").text
    assert "Add a feature" not in page
    assert re.search(r'id="features-0-key"[^>]* readonly', page)
    assert 'name="features-2-unknown" value="no"' in page
    edited = values | {"key": "spring", "revision": "1", "action": "save"}
    refused = browser.post("/campaigns/spring/edit", edited | {"features-0-scale": "6"})
    assert refused.status_code == 422
    assert "Cannot change after the launch" in refused.text
    assert browser.post("/campaigns/spring/edit", edited | {"holdout": "10"}).status_code == 302


def test_what_is_forgotten_is_told_in_the_units_of_the_campaign(app: Flask) -> None:
    browser = Browser(app).log_in("marketer")
    options = {"half_life": 12, "bucket_seconds": 3600}
    hourly = definition(policy={"name": "thompson_profit", "options": options})
    values = forms.fill(hourly)
    assert values["policy-thompson_profit-half_life"] == "12"
    assert forms.check(values, key="spring").definition == hourly
    assert "× 1 hour" in browser.post("/campaigns/new", values | {"action": "add-arm"}).text
    daily = with_features(policy="ucb1", **{"policy-ucb1-half_life": "30"})
    plan = forms.check(daily).definition
    assert plan is not None
    assert plan.policy.options == {"half_life": 30}
    assert "× 1 day" in browser.post("/campaigns/new", daily | {"action": "add-arm"}).text
    damaged = values | {"policy-options": '{"bucket_seconds": Infinity}', "action": "add-arm"}
    assert browser.post("/campaigns/new", damaged).status_code == 200


def test_ways_of_sharing_out_are_offered_where_they_fit(app: Flask) -> None:
    page = Browser(app).log_in("marketer").get("/campaigns/new").text
    offered = re.findall(r'data-objective="([^"]*)">\s*<label.*? value="(\w+)"', page)
    fits = {name: objectives.split() for objectives, name in offered}
    assert offered[0][1] == "usual"
    assert fits["logistic_thompson"] == fits["thompson_beta"] == ["conversion"]
    contextual = {one.name for one in policies.catalogue() if one.contextual}
    assert set(fits) >= contextual | {"auto", "fixed_split"}
    for name, objectives in fits.items():
        for objective in objectives:
            values = with_features(VISITS, policy=name, objective=objective)
            assert forms.check(values).errors == {}, (name, objective)


# ---------------------------------------------------------------- who may do what


def test_every_page_has_its_right_and_refuses_those_without(app: Flask, engine: Engine) -> None:
    with db.transaction(engine) as session:
        campaigns.create(session, definition(), actor="test")
        key, _ = keys.create(session, name="k", scopes=["read"], actor="test")
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("console.")]
    assert {rule.endpoint for rule in rules} == set(NEEDS)
    places: dict[str, Any] = {
        "key": "spring", "action": "pause", "public_id": key.public_id, "user_id": 1,
        "decision_id": str(uuid.UUID(int=0)), "name": "traffic", "version": "x",
        "import_id": 1, "unit": "0" * 32, "chart": "days",
    }  # fmt: skip
    stranger = Browser(app)
    stranger.get("/login")
    people = {role: Browser(app).log_in(role) for role in ROLES}
    for rule, method in itertools.product(rules, ("GET", "POST")):
        needed = NEEDS[rule.endpoint]
        if method not in (rule.methods or ()) or needed == "open":
            continue
        with app.test_request_context():
            address = app.url_for(rule.endpoint, **{n: places[n] for n in rule.arguments})
        send = Browser.get if method == "GET" else Browser.post
        assert "/login" in send(stranger, address).headers["Location"], address
        for role, browser in people.items():
            if needed not in RIGHTS[role]:
                assert send(browser, address).status_code == 403, (role, address)


def test_navigation_shows_what_the_role_may_see(app: Flask) -> None:
    seen = {
        role: set(
            re.findall(r'<a href="(/[a-z]+)"', Browser(app).log_in(role).get("/account").text)
        )
        for role in ROLES
    }
    assert seen["marketer"] >= {"/campaigns", "/account", "/decisions"}
    assert seen["marketer"].isdisjoint({"/keys", "/people", "/audit"})
    assert seen["developer"] >= {"/keys", "/decisions", "/audit"}
    assert "/people" in seen["admin"]
    assert "/people" not in seen["developer"]


def test_a_form_without_our_token_changes_nothing(app: Flask, engine: Engine) -> None:
    browser = Browser(app).log_in("admin")
    browser.token = "forged"
    assert browser.post("/keys", {"name": "x", "scopes": "read"}).status_code == 403
    with db.transaction(engine) as session:
        assert keys.listing(session) == []


def test_log_in_refuses_wrong_passwords_and_foreign_targets(app: Flask) -> None:
    browser = Browser(app)
    browser.get("/login")
    values = {"email": "admin@shop.example", "password": "wrong"}
    reply = browser.post("/login?next=//evil.example/", values)
    assert reply.status_code == 401
    assert "do not fit together" in reply.text
    assert "wrong" not in reply.text
    reply = browser.post("/login?next=//evil.example/", values | {"password": PASSWORD})
    assert reply.headers["Location"] == "/"
    cookie = reply.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    with app.test_request_context():
        assert inside("/campaigns?state=draft") == "/campaigns?state=draft"
        for foreign in ("https://evil.example", "//evil", "/\\evil", "javascript:alert(1)", None):
            assert inside(foreign) == "/"


def test_a_changed_password_ends_other_sessions(app: Flask) -> None:
    here, there = Browser(app).log_in("analyst"), Browser(app).log_in("analyst")
    assert here.post("/account", {"current": "no", "new": "x" * 12}).status_code == 422
    new = {"current": PASSWORD, "new": "another long password"}
    assert here.post("/account", new).status_code == 302
    assert here.get("/campaigns").status_code == 200
    assert there.get("/campaigns").status_code == 302


# ---------------------------------------------------------------- the life of a campaign


def test_create_review_launch_and_edit(app: Flask) -> None:
    browser = Browser(app).log_in("marketer")
    values = forms.blank() | {"name": "Spring"}
    wrong = browser.post("/campaigns/new", values | {"arms-1-percent": "0", "action": "review"})
    assert wrong.status_code == 422
    assert 'id="arms-1-percent-error"' in wrong.text
    assert "Must lie between" in wrong.text
    assert browser.post("/campaigns/new", values).headers["Location"] == "/campaigns/spring/review"
    again = browser.post("/campaigns/new", values)
    assert again.status_code == 422
    assert "Is taken already." in again.text
    page = browser.get("/campaigns/spring/review")
    assert "Starts as soon as you launch it" in page.text
    assert browser.post("/campaigns/spring/review", {"revision": "7"}).status_code == 409
    assert browser.post("/campaigns/spring/review", {"revision": "1"}).status_code == 302
    live = browser.get("/campaigns/spring")
    assert "Waiting for the first customer" in live.text

    edited = values | {"key": "spring", "holdout": "10", "revision": "1"}
    review = browser.post("/campaigns/spring/edit", edited | {"action": "review"})
    assert "<del>5 %</del>" in review.text
    assert "<ins>10 %</ins>" in review.text
    assert browser.post("/campaigns/spring/edit", edited | {"action": "save"}).status_code == 302
    frozen = browser.post(
        "/campaigns/spring/edit", edited | {"revision": "2", "currency": "USD", "action": "save"}
    )
    assert frozen.status_code == 422
    assert "Cannot change after the launch" in frozen.text
    assert "Changed the campaign" in browser.get("/campaigns/spring/history").text


def test_who_saves_second_sees_both_versions(app: Flask) -> None:
    one, two = Browser(app).log_in("marketer"), Browser(app).log_in("admin")
    values = forms.blank() | {"name": "Spring"}
    one.post("/campaigns/new", values | {"action": "save"})
    mine = values | {"key": "spring", "holdout": "20", "revision": "1", "action": "save"}
    theirs = values | {"key": "spring", "holdout": "10", "revision": "1", "action": "save"}
    assert one.post("/campaigns/spring/edit", theirs).status_code == 302
    conflict = two.post("/campaigns/spring/edit", mine)
    assert conflict.status_code == 409
    assert "marketer@shop.example" in conflict.text
    assert "<td>10 %</td><td>20 %</td>" in conflict.text
    assert two.post("/campaigns/spring/edit", mine | {"revision": "2"}).status_code == 302
    assert "20 % always get" in two.get("/campaigns/spring/plan").text


@pytest.mark.parametrize("action", ["pause", "end", "kill"])
def test_actions_are_confirmed_first(app: Flask, engine: Engine, action: str) -> None:
    with db.transaction(engine) as session:
        campaigns.create(session, definition(), actor="test")
        campaigns.transition(session, "spring", "launch", actor="test")
    browser = Browser(app).log_in("marketer")
    assert "At once" in browser.get(f"/campaigns/spring/{action}").text
    with db.transaction(engine) as session:
        assert campaigns.get(session, "spring").state == "running"
    assert browser.post(f"/campaigns/spring/{action}").status_code == 302
    with db.transaction(engine) as session:
        assert campaigns.get(session, "spring").state == {"pause": "paused"}.get(action, "ended")
    again = browser.post(f"/campaigns/spring/{action}")
    assert again.status_code == 409
    assert "cannot" in again.text


def test_duplicate_and_delete_a_draft(app: Flask, engine: Engine) -> None:
    with db.transaction(engine) as session:
        campaigns.create(session, definition(), actor="test")
    browser = Browser(app).log_in("marketer")
    copied = {"name": "Spring again", "key": "spring-2"}
    bad = browser.post("/campaigns/spring/duplicate", copied | {"key": "Not a key"})
    assert bad.status_code == 409
    assert "Use small letters" in bad.text
    reply = browser.post("/campaigns/spring/duplicate", copied)
    assert reply.headers["Location"] == "/campaigns/spring-2/edit"
    assert browser.post("/campaigns/spring-2/delete").headers["Location"] == "/campaigns"
    assert browser.get("/campaigns/spring-2").status_code == 404


# ---------------------------------------------------------------- pages with data


@pytest.fixture
def shop(config: Config, engine: Engine) -> Iterator[Loop]:
    loop = Loop(config, engine)
    number = loop.launch(holdout=0.1)
    loop.shop(60)
    loop.carry()
    loop.learn(number)
    loop.shop(60)
    loop.carry()
    yield loop
    loop.runtime.stop()


def test_live_page_log_and_explanation(shop: Loop, app: Flask, engine: Engine) -> None:
    browser = Browser(app).log_in("admin")
    page = browser.get("/campaigns/spring").text
    assert page.count('class="card chart-card"') == 5
    assert "Cannot tell yet what a lower price does" in page
    assert "the customers of two offers differ" not in page
    data = browser.get("/campaigns/spring/live.json", headers={"Accept": "application/json"}).json
    assert data is not None
    assert set(data["charts"]) == {"traffic", "posterior", "regret", "value", "elasticity"}
    assert all(spec["data"]["name"] == "rows" for spec in data["charts"].values())
    assert data["charts"]["traffic"]["data"]["values"]
    assert set(data["themes"]) == {"light", "dark"}
    assert "<script" not in "".join(data["parts"].values())
    csv = browser.get("/campaigns/spring/report.csv")
    assert csv.mimetype == "text/csv"
    assert csv.text.count("\n") > 3
    with db.transaction(engine) as session:
        report = campaign_report(session, "spring")
    assert theme("light")["range"]["category"] != theme("dark")["range"]["category"]
    assert charts(report, segment="loyal") != charts(report, segment="everyone")

    first = browser.get("/campaigns/spring/decisions")
    older = re.search(r'href="([^"]+cursor=[^"]+)" rel="next"', first.text)
    assert older is not None
    second = browser.get(older[1].replace("&amp;", "&"))
    seen = [re.findall(r"/decisions/([0-9a-f-]{36})", reply.text) for reply in (first, second)]
    assert len(seen[0]) == len(seen[1]) == 50
    assert set(seen[0]).isdisjoint(seen[1])
    assert browser.get("/campaigns/spring/decisions?cursor=forged").status_code == 422
    assert "No decision fits" in browser.get("/campaigns/spring/decisions?reason=killed").text
    for chosen in ("arm=ten", "segment=loyal", "reason=policy"):
        assert browser.get(f"/campaigns/spring/decisions?{chosen}").status_code == 200
    assert browser.get("/decisions?campaign=spring&reason=policy").status_code == 200
    why = browser.get(f"/decisions/{seen[0][0]}").text
    assert "the same probabilities to the last bit" in why.replace("\n", " ") or "Holdout" in why
    assert browser.get(f"/decisions?id={seen[0][0]}").status_code == 302
    assert browser.get("/decisions?id=nonsense").status_code == 404


@pytest.fixture
def tailored(config: Config, engine: Engine) -> Iterator[Loop]:
    """A campaign that has learnt: the app's customers buy without a discount, others with."""
    loop = Loop(config, engine)
    number = loop.launch(
        objective="conversion", policy={"name": "linear_thompson"}, segments=[], features=TOLD,
        holdout=0.1,
    )  # fmt: skip
    for place in range(160):
        channel, wanted = (("app", "none"), ("web", "twenty"))[place % 2]
        (reply,) = loop.decide(f"unit-{place}", attributes={"channel": channel, "visits": 12})
        if reply.arm == wanted:
            loop.outcome(reply)
        if place % 40 == 39:
            loop.carry()
            loop.learn(number)
            loop.carry()
    yield loop
    loop.runtime.stop()


TOLD: list[dict[str, Any]] = [
    {"kind": "category", "key": "channel", "name": "Channel", "values": ["app", "web"]},
    {"kind": "number", "key": "visits", "name": "Visits", "centre": 10, "scale": 5},
    {"kind": "boolean", "key": "member", "name": "Member"},
]


def _explained(browser: Browser, decision: Any) -> str:
    page = browser.get(f"/decisions/{decision.decision_id}")
    assert page.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.text))


def test_a_decision_by_features_tells_what_was_known_and_what_it_did(
    tailored: Loop, app: Flask, engine: Engine
) -> None:
    browser = Browser(app).log_in("analyst")
    assert "the customers of two offers differ" in browser.get("/campaigns/spring").text
    asked = [{"channel": "web", "visits": 1000}, {"channel": "tv"}]
    replies = [tailored.decide(f"new-{n}", attributes=asked[n % 2])[0] for n in range(120)]
    tailored.carry()
    web = next(one for one in replies[::2] if (one.reason, one.arm) == ("policy", "twenty"))
    said = _explained(browser, web)
    assert "“Channel: web” spoke most for “20 %”" in said
    assert "90 or more" in said
    assert "Beyond what counts" in said
    assert "No Not told: taken as if unknown" in said
    with db.transaction(engine) as session:
        found = history.explain(session, web.decision_id)
        live = replay(session, web.decision_id).live
        told = history.influence(found, live)
    assert told is not None
    assert told.without[2] == web.propensity, "nothing was told, so nothing changes without it"
    assert told.without[0] < web.propensity - 0.05
    known = live.simplex(found.decision.segment, found.decision.mask, (0, 0, 65_535, 0))
    assert told.without[0] == known[found.decision.arm]
    number = re.search(r"The number was (0\.\d{4}) .* reaches from ([\d.]+) to ([\d.]+)\.", said)
    assert number is not None
    assert float(number[2]) <= float(number[1]) <= float(number[3])
    other = next(one for one in replies[1::2] if one.reason == "policy")
    assert "None of its values" in _explained(browser, other)
    held = next(one for one in replies if one.reason == "holdout")
    assert "nothing was drawn" in _explained(browser, held)
    assert "Chance of" not in _explained(browser, held)


def test_a_kept_offer_leads_to_its_draw(config: Config, engine: Engine, app: Flask) -> None:
    loop = Loop(config, engine)
    loop.launch(features=TOLD, sticky_seconds=3600)
    (first,) = loop.decide("ana")
    (again,) = loop.decide("ana")
    loop.carry()
    loop.runtime.stop()
    browser = Browser(app).log_in("analyst")
    assert "does not look at it" in _explained(browser, first)
    said = _explained(browser, again)
    assert "The number of that earlier draw was" in said
    assert "not looked at: the customer keeps an earlier draw" in said
    assert f"/decisions/{first.decision_id}" in browser.get(f"/decisions/{again.decision_id}").text


def test_a_decision_on_products_names_them_and_what_was_taken_off(
    config: Config, engine: Engine, app: Flask
) -> None:
    arms = [
        {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
        {"key": "steep", "name": "Steep",
         "offer": {"kind": "recommended", "tiers": [{"items": 1, "percent": 20},
                                                    {"items": 2, "percent": 7.5}]}},
    ]  # fmt: skip
    always = {"name": "fixed_split", "options": {"shares": [0, 1]}}
    with db.transaction(engine) as session:
        session.add(Product(id="sku-1", name="Green tea"))
    browser = Browser(app).log_in("analyst")
    with running(config, engine) as loop:
        loop.launch(arms=arms, segments=[], policy=always, floor=0)
        (nothing,) = loop.decide("ana")
        loop.runtime.spool.write({"popular": b'["sku-1","sku-2"]'})
        loop.runtime.catalogue.refresh()
        (some,) = loop.decide("ana")
        loop.outcome(some, revenue_minor=4500, discount_minor=320)
        loop.carry()
        assert "nothing was taken off" in _explained(browser, nothing)
        page = _explained(browser, some)
    assert re.search(r"Green tea\s*sku-1\s*20 %\s*sku-2\s*7.5 %", page)
    assert "20 % off the first recommended product, 7.5 % off the next 2" in page
    assert "of which 3.20 USD taken off" in page


def test_a_campaign_that_waits_shows_a_request_with_its_features(
    config: Config, engine: Engine, app: Flask
) -> None:
    loop = Loop(config, engine)
    loop.launch(features=TOLD)
    loop.runtime.stop()
    page = html.unescape(Browser(app).log_in("marketer").get("/campaigns/spring").text)
    assert '"attributes": {"channel": "app", "visits": 10, "member": true}' in page


def test_keys_are_shown_once_and_revoked(app: Flask, engine: Engine) -> None:
    browser = Browser(app).log_in("developer")
    assert "Say which server" in browser.post("/keys", {"scopes": "read"}).text
    made = browser.post("/keys", {"name": "checkout", "scopes": ["decide", "reward"]}).text
    secret = re.search(r"bk_live_[a-z0-9]{8}_[A-Za-z0-9_-]{32,}", made)
    assert secret is not None
    assert secret[0] not in browser.get("/keys").text
    with db.transaction(engine) as session:
        (key,) = keys.listing(session)
    assert "Cannot be undone" in browser.get(f"/keys/{key.public_id}/revoke").text
    assert browser.post(f"/keys/{key.public_id}/revoke").status_code == 302
    assert "Revoked" in browser.get("/keys").text


def test_people_are_added_changed_and_locked_out(app: Flask, engine: Engine) -> None:
    browser = Browser(app).log_in("admin")
    new = {"name": "Ana", "email": "Ana@Shop.example", "role": "analyst", "password": "short"}
    refused = browser.post("/people", new)
    assert refused.status_code == 422
    assert 'value="short"' not in refused.text
    assert browser.post("/people", new | {"password": PASSWORD}).status_code == 302
    with db.transaction(engine) as session:
        ana = next(one for one in users.listing(session) if one.email == "ana@shop.example")
        admin = next(one for one in users.listing(session) if one.role == "admin")
    browser.post(f"/people/{ana.id}", {"action": "role", "role": "marketer"})
    browser.post(f"/people/{ana.id}", {"action": "disable"})
    browser.post(f"/people/{admin.id}", {"action": "disable"})
    assert "This is the last admin" in browser.get("/people").text
    with db.transaction(engine) as session:
        assert users.find(session, ana.id).role == "marketer"
        assert users.find(session, ana.id).disabled_at is not None
    assert "Locked out a person" in browser.get("/audit?subject=user:ana@shop.example").text


def test_errors_are_pages(app: Flask, config: Config) -> None:
    browser = Browser(app).log_in("marketer")
    lost = browser.get("/campaigns/none-such")
    assert lost.status_code == 404
    assert "There is nothing here" in lost.text
    assert browser.get("/no/such/page").status_code == 404
    assert "not for your role" in browser.get("/keys").text
    app.extensions["barter.engine"].dispose()
    away = db.engine("postgresql://nobody@127.0.0.1:1/none", connect_timeout_seconds=2, pool_size=1)
    app.extensions["barter.engine"] = away
    down = browser.get("/campaigns")
    assert down.status_code == 503
    assert "The database is away" in down.text
    assert down.headers["Retry-After"]


def test_theme_is_remembered(app: Flask) -> None:
    browser = Browser(app)
    browser.get("/login")
    browser.post("/theme", {"theme": "dark", "next": "/login"})
    assert '<html lang="en" data-theme="dark">' in browser.get("/login").text
    browser.post("/theme", {"theme": "system"})
    assert '<html lang="en">' in browser.get("/login").text


def test_the_bundle_is_built_once(tmp_path: Path) -> None:
    built = bundle.path(tmp_path / "cache")
    first = built.stat().st_mtime_ns
    assert bundle.path(tmp_path / "cache").stat().st_mtime_ns == first
    assert built.name.startswith(bundle.name())
