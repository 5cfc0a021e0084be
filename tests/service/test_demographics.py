"""Which attributes personas are made of, and what they are called."""

from collections.abc import Mapping

import numpy as np
import pytest
from sqlalchemy import Engine

from service.config import Config
from service.imports import load
from service.traits import demographics, history
from service.traits.fit import Last, fit
from tests.service.test_traits import receipts

TOLD: list[Mapping[str, object] | None] = [
    {
        "age": 20 + number % 50,
        "loyal": number % 3 == 0,
        "region": ("north", "south", "east")[number % 3],
        "email": f"c{number}@example.org",
        "seldom": number if number % 3 == 0 else None,
        "same": 7,
    }
    for number in range(200)
]


def test_numbers_yes_or_no_and_a_few_words_are_taken() -> None:
    found = demographics.columns(TOLD)
    assert found.names == (
        "age", "loyal=True", "region=east", "region=north", "region=south",
    )  # fmt: skip
    assert found.values.shape == (200, 5)
    assert [trait.high for trait in found.traits] == [
        "older", "loyal", "region east", "region north", "region south",
    ]  # fmt: skip
    assert found.traits[1].low == "not loyal"
    np.testing.assert_array_equal(found.values[:, 2:].sum(axis=1), 1)


def test_who_has_none_is_like_the_average_and_outliers_are_cut() -> None:
    told = [{"income": 100.0 + n} for n in range(98)] + [{"income": 1e9}, None]
    (column,) = demographics.columns(told).values.T
    assert column.max() < 1e9
    assert np.isfinite(column).all()
    assert demographics.columns([None, {"income": 3}, None]).names == (), "too few have it"
    assert demographics.columns([]).values.shape == (0, 0)


def test_personas_are_of_people_too(engine: Engine, config: Config) -> None:
    load.transactions(engine, config, receipts())
    people = (
        {"age": 25, "household_size": 1, "student": True},
        {"age": 60, "household_size": 4, "student": False},
    )
    rows = [(f"u{n}", people[n % 2] | {"age": people[n % 2]["age"] + n % 3}) for n in range(240)]
    load.customers(engine, config, rows, actor="test")
    shop = history.read(engine)
    found = fit(shop)
    named = [one["name"] for one in found.summary["personas"]]
    assert any("young" in name or "student" in name for name in named), named
    assert any("older" in name or "families" in name for name in named), named
    before = Last(personas=found.personas, persona_features=found.summary["persona_features"])
    assert [one["name"] for one in fit(shop, last=before).summary["personas"]] == named
    alone = fit(shop._replace(told=()), last=before).summary
    assert alone["persona_features"] == ("gap", "recency", "spend", "discount_share")
    assert "personas" not in alone["failed"], "of other features, personas are found anew"


@pytest.mark.parametrize("value", ["x" * 40, "free text"])
def test_texts_that_all_differ_are_left_out(value: str) -> None:
    assert demographics.columns([{"note": f"{value} {n}"} for n in range(50)]).names == ()
