"""Campaign definitions: what an offer costs, and errors that name the field and the remedy."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

import service
from bandits import simplex
from bandits.posteriors import shared
from bandits.types import Contexts
from service.definition import Offer
from service.products import TOLD_LAST
from service.views.console_campaigns import KNOWN_ATTRIBUTES
from tests.loop import DEFINITION, definition

OFFER: TypeAdapter[Any] = TypeAdapter(Offer)
PRODUCTS = [{"items": 2, "percent": 20}, {"items": 6, "percent": 10}]
STOCKED = {"attribute": "product_stock", "op": ">", "value": 4}
TIERS = [{"threshold_minor": 2000, "percent": 5}, {"threshold_minor": 5000, "percent": 12.5}]

MANY, FEW = (
    {"key": key, "name": key, "offer": {"kind": "recommended", "tiers": tiers}}
    for key, tiers in (
        ("many", [{"items": 30, "percent": 5}, {"items": 1, "percent": 10}]),
        ("few", PRODUCTS),
    )
)


@pytest.mark.parametrize(
    ("offer", "costs", "worst"),
    [
        ({"kind": "none"}, {0: 0, 9999: 0}, 0),
        ({"kind": "percentage", "percent": 10}, {0: 0, 995: 100, 10_000: 1000}, None),
        (
            {"kind": "percentage", "percent": 50, "max_discount_minor": 700},
            {1000: 500, 1400: 700, 9000: 700},
            700,
        ),
        ({"kind": "amount", "amount_minor": 500}, {300: 300, 500: 500, 9000: 500}, 500),
        (
            {"kind": "spend_threshold", "threshold_minor": 3000, "amount_minor": 400},
            {2999: 0, 3000: 400},
            400,
        ),
        ({"kind": "tiered", "tiers": TIERS}, {1999: 0, 2000: 100, 4999: 250, 5000: 625}, None),
        (
            {"kind": "recommended", "tiers": PRODUCTS, "basket_share": 0.5},
            {0: 0, 1000: 62, 10_000: 625},  # half of the basket at 12.5 % on average
            None,
        ),
        (
            {"kind": "recommended", "tiers": PRODUCTS[:1], "max_discount_minor": 400},
            {1000: 60, 10_000: 400},
            400,
        ),
        ({"kind": "gift", "gift": "A mug", "cost_minor": 250}, {0: 250, 9000: 250}, 250),
        (
            {"kind": "free_shipping", "cost_minor": 490, "threshold_minor": 2000},
            {1999: 0, 2000: 490},
            490,
        ),
    ],
)
def test_what_an_offer_costs(
    offer: dict[str, Any], costs: dict[int, int], worst: int | None
) -> None:
    made = OFFER.validate_python(offer)
    assert {basket: made.discount_minor(basket) for basket in costs} == costs
    assert made.worst_minor() == worst
    assert worst is None or all(cost <= worst for cost in costs.values())
    assert made.label("EUR")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"default_arm": "fifty"}, "default_arm: must be one of the arms: none, ten, twenty"),
        (
            {"arms": [DEFINITION["arms"][0] | {"only_if": [STOCKED]}, *DEFINITION["arms"][1:]]},
            "default_arm: must be there for everyone: leave out its only_if",
        ),
        ({"zone": "Mars/Olympus"}, "IANA time zone such as Europe/Madrid"),
        ({"country": "Germany"}, "ISO 3166 code such as US, US-CA or DE-BY"),
        ({"country": "XX"}, "no holidays of XX are known; leave it out"),
        (
            {"country": "DE-XX"},
            "no holidays of DE-XX are known: use DE, or one of its parts BB",
        ),
        ({"currency": "euro"}, "ISO 4217 code such as EUR"),
        ({"starts_at": 1_800_000_000}, "RFC 3339"),
        ({"starts_at": "2026-12-01T09:00:00"}, "offset"),
        (
            {"starts_at": "2026-12-02T00:00:00Z", "ends_at": "2026-12-01T00:00:00Z"},
            "ends_at: must come after starts_at",
        ),
        ({"floor": 0.4}, "floor: 3 arms leave at most 0.3333 each"),
        ({"objective": "revenue", "policy": {"name": "thompson_profit"}}, "objective profit"),
        ({"policy": {"name": "logistic_thompson"}}, "objective conversion"),
        ({"policy": {"name": "oracle"}}, "policy"),
        ({"policy": {"name": "epsilon_greedy", "options": {"epsilon": 7}}}, "epsilon"),
        ({"arms": DEFINITION["arms"] + DEFINITION["arms"][:1]}, "keys must differ"),
        ({"key": "Spring Sale"}, "key"),
        ({"surprise": 1}, "surprise"),
        (
            {"arms": [DEFINITION["arms"][0], MANY]},
            r"(?s)arms\.1\.offer\.recommended\.tiers.*take 31 products together, and 30 are kept",
        ),
        (
            {"arms": [DEFINITION["arms"][0], FEW], "budget_minor": 10_000},
            "few needs max_discount_minor, because a budget is set",
        ),
    ],
)
def test_a_wrong_definition_says_what_would_be_right(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        definition(**changes)


def test_the_objective_chooses_a_policy_that_learns_it() -> None:
    chosen = {
        objective: definition(objective=objective).policy.name
        for objective in ("profit", "revenue", "conversion")
    }
    assert chosen == {
        "profit": "thompson_hierarchical",
        "revenue": "thompson_gaussian",
        "conversion": "thompson_hierarchical",
    }


def test_a_segment_may_change_an_offer() -> None:
    segments = [DEFINITION["segments"][0] | {"arms": {"ten": {"offer": {"kind": "none"}}}}]
    plan = definition(segments=segments)
    assert plan.offer(0, 1).kind == "none"
    assert plan.offer(1, 1).kind == "percentage"
    assert plan.profit_of_sale(0, 1, 1000) == 400
    assert plan.profit_of_sale(1, 1, 1000) == 300


@pytest.mark.parametrize("objective", ["profit", "conversion"])
@pytest.mark.parametrize(
    "offer",
    [
        {"kind": "gift", "gift": "A mug", "cost_minor": 90_000},
        {"kind": "free_shipping", "cost_minor": 90_000},
        {"kind": "amount", "amount_minor": 90_000},
        {"kind": "percentage", "percent": 100},
    ],
)
def test_an_offer_may_cost_more_than_a_basket(offer: dict[str, Any], objective: str) -> None:
    arms = [DEFINITION["arms"][0], {"key": "dear", "name": "Dear", "offer": offer}]
    plan = definition(arms=arms, segments=[], objective=objective, default_arm="none")
    policy = plan.build_policy()
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
    eligible = np.ones((1, 2), dtype=bool)
    served = policy.probabilities(policy.believe(policy.init()), contexts, eligible)
    simplex.check(served, eligible)
    assert plan.policy.name == "thompson_hierarchical"
    assert served[0, 0] > 0.5 or objective == "conversion"


def test_the_hierarchical_policy_is_told_the_offers_terms() -> None:
    plan = definition(policy={"name": "thompson_hierarchical"})
    terms = plan.prior_options("thompson_hierarchical")
    assert terms["depth"] == [[0.0, 0.1, 0.2]] * 2
    assert terms["value"] == [[1200.0, 900.0, 600.0]] * 2
    assert terms["gain"] == [[1200.0, 900.0, 600.0]] * 2
    rate = definition(objective="conversion", policy={"name": "thompson_hierarchical"})
    assert set(rate.prior_options("thompson_hierarchical")) == {"depth"}


def test_a_definition_tells_whether_its_policy_is_retrained() -> None:
    features = [{"kind": "boolean", "key": "member", "name": "Member"}]
    trees = {"name": "squarecb", "options": {"regressor": "trees"}}
    for policy in ({"name": "trees_thompson"}, {"name": "neural_linear"}, trees):
        assert definition(features=features, policy=policy).retrains
    for policy in ({"name": "squarecb"}, {"name": "auto"}):
        assert not definition(features=features, policy=policy).retrains


def test_arms_that_share_coefficients_are_told_their_offers_depths() -> None:
    offer = {"kind": "gift", "gift": "Mug", "cost_minor": 60}
    gift = {"key": "mug", "name": "A mug", "offer": offer}
    plan = definition(arms=[*DEFINITION["arms"], gift])
    for name in ("linear_thompson", "linear_ucb"):
        assert plan.prior_options(name) == {"depth": [0.0, 0.1, 0.2, 0.02]}
    for name in ("thompson_beta", "neural_linear"):
        assert plan.prior_options(name) == {}


def test_any_depth_is_a_ladder_of_arms() -> None:
    """As README.md says: 31 arms from 0 to 30 %, recognised by the default as a ladder."""
    arms = [{"key": "none", "name": "No discount", "offer": {"kind": "none"}}] + [
        {"key": f"off-{n}", "name": f"{n} %", "offer": {"kind": "percentage", "percent": n}}
        for n in range(1, 31)
    ]
    plan = definition(arms=arms, segments=[], floor=0.001, basket_minor=2990)
    x = shared.features(np.array(plan.depths()), segments=1, arms=31)
    assert x.shape[-1] == 2 + shared.KNOTS
    policy = plan.build_policy()
    everyone = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
    p = policy.probabilities(policy.believe(policy.init()), everyone, np.ones((1, 31), bool))
    assert p.sum() == pytest.approx(1.0)


def test_every_attribute_that_can_be_known_is_documented() -> None:
    readme = Path(service.__file__).with_name("README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("## Attributes that a decision can know")
    rows = [row.split("|")[1] for row in section.partition("\n## ")[0].splitlines() if "|" in row]
    told = set(re.findall(r"`(\w+)`", " ".join(rows)))
    known = {name for name, _ in KNOWN_ATTRIBUTES}
    assert told == known - {f"taste_{place}" for place in range(2, 8)}
    for name in ("product_stock", "product_price_minor"):
        assert re.search(rf"`{name}` .* told within {TOLD_LAST.days} days \|", section)
