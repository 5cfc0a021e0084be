"""Chances to buy within thirty days: what they go by, that they come true, who is told."""

from typing import Any

import numpy as np
import pytest
from flask import Flask
from sqlalchemy import Engine

from service.traits import chance, publish
from service.traits.history import Receipts, Shop
from tests.service.test_backtest import fitted, shop
from tests.service.test_console import Browser

DAYS, CUSTOMERS = 200, 400


def of_two_paces() -> Shop:
    """Return receipts of customers, half of whom buy weekly, the others every 90 days or so."""
    draw = np.random.default_rng(3)
    often = np.arange(CUSTOMERS) % 2 == 0
    unit, day = np.nonzero(draw.random((CUSTOMERS, DAYS)) < np.where(often, 1 / 7, 1 / 90)[:, None])
    product = draw.integers(0, 20, len(unit))
    units = np.array([f"{n:032x}" for n in range(CUSTOMERS)])
    return shop(units, np.array([f"p{n}" for n in range(20)]), unit, product, 20_000 + day)


def test_chances_come_true_and_are_told(app: Flask, engine: Engine) -> None:
    found = of_two_paces()
    summary: dict[str, Any] = {"failed": {}}
    chances = chance.fit(found, summary)
    told = summary["purchase_chance"]
    assert told["log_loss"] < 0.7 * told["base_loss"]
    assert told["auc"] > 0.85
    assert told["calibration_error"] < 0.1
    assert np.nanmedian(chances[::2]) > 0.9
    # Whoever buys every 90 days buys within 30 with 1 - (89 / 90) ** 30 = 28 %.
    assert 0.18 < np.nanmedian(chances[1::2]) < 0.4

    publish.publish(engine, found, fitted(found, summary, {"purchase_chance": chances}))
    browser = Browser(app).log_in("analyst")
    page = browser.get("/customers").text
    assert f"off by {100 * told['calibration_error']:.1f} points" in page
    assert browser.client.get("/customers/chance.svg").mimetype == "image/svg+xml"
    assert "Buys within 30 days" in browser.get(f"/customers/{found.units[0]}").text


def test_nothing_is_known_of_a_customer_that_came_later() -> None:
    found = of_two_paces()
    day = int(found.receipts.day.max()) - chance.DAYS
    kept = found.receipts.day <= day
    early = found._replace(receipts=Receipts._make(column[kept] for column in found.receipts))
    one, other = (chance.known(part, day, 150) for part in (found, early))
    np.testing.assert_array_equal(one.unit, other.unit)
    np.testing.assert_array_equal(one.columns, other.columns)
    short = found._replace(receipts=found.receipts._replace(day=found.receipts.day // 2))
    with pytest.raises(ValueError, match="days; 120 needed"):
        chance.fit(short, {})
