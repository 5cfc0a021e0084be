"""What prices did to quantities, by department and by persona, out of receipts.

Quantities of a product in a week are set against its price per piece in that week, with the product
and the week held constant (`bandits.customers.elasticity.log_log`). Receipts do not tell what was
featured or how stock stood, and know no week without a sale: read the figures as what went with a
lower price, not as what it alone would do. A campaign's own randomised log knows better.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.customers import elasticity
from bandits.customers.elasticity import Elasticity
from service.traits.history import Floats, Ints, Shop

PRODUCTS, DEPARTMENTS = 400, 12
FEWEST_CELLS = 200
LEAST_SPREAD = 0.02
"""A product whose log prices differ by less (standard deviation) tells nothing of prices."""


class Cells(NamedTuple):
    """Products in weeks, in a group each: pieces sold, and the mean price per piece."""

    product: Ints
    week: Ints
    group: NDArray[Any]
    quantity: Floats
    price: Floats


def by_department(shop: Shop) -> list[dict[str, Any]]:
    """Return the elasticity of each of the largest departments, as rows for people.

    Raises:
        ValueError: there is too little, or prices never differ.
    """
    department = shop.departments[shop.receipts.product]
    names, count = np.unique(department[department != ""], return_counts=True)
    large = names[np.argsort(-count)][:DEPARTMENTS] if len(names) else np.array(["all products"])
    group = department if len(names) else np.full(len(department), "all products", dtype=object)
    return _told(_estimated(_cells(shop, group, large.tolist())))


def by_persona(shop: Shop, persona: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the elasticity of each persona (U,), as rows for people; raises as above."""
    group = persona[shop.receipts.unit]
    names = sorted({name for name in persona.tolist() if name is not None})
    return _told(_estimated(_cells(shop, group, names)))


def _cells(shop: Shop, group: NDArray[Any], names: Sequence[str]) -> Cells:
    lines = shop.receipts
    often = np.argsort(-np.bincount(lines.product, minlength=len(shop.products)))[:PRODUCTS]
    place = {name: number for number, name in enumerate(names)}
    code = np.array([place.get(name, -1) for name in group.tolist()], dtype=np.int64)
    kept = np.isin(lines.product, often) & (code >= 0) & (lines.paid > 0)
    product, week, code = lines.product[kept], lines.day[kept] // 7, code[kept]
    weeks, groups = int(week.max(initial=0)) + 1, max(len(names), 1)
    cell, index = np.unique((product * weeks + week) * groups + code, return_inverse=True)
    quantity: Floats = np.bincount(index, lines.quantity[kept], minlength=len(cell)).astype(float)
    price = np.bincount(index, lines.paid[kept], minlength=len(cell)) / quantity
    found = Cells(
        cell // groups // weeks,
        cell // groups % weeks,
        np.array(names, dtype=object)[cell % groups].astype(str),
        quantity,
        price,
    )
    return _told_apart(found)


def _told_apart(cells: Cells) -> Cells:
    """Return the cells of products whose prices differ."""
    _, place, count = np.unique(cells.product, return_inverse=True, return_counts=True)
    log = np.log(cells.price)
    mean = np.bincount(place, log) / count
    spread = np.sqrt(np.bincount(place, (log - mean[place]) ** 2) / count)
    kept = spread[place] >= LEAST_SPREAD
    if kept.sum() < FEWEST_CELLS:
        raise ValueError(
            f"{int(kept.sum())} weeks of products whose prices differ; {FEWEST_CELLS} needed"
        )
    return Cells(
        cells.product[kept],
        cells.week[kept],
        cells.group[kept],
        cells.quantity[kept],
        cells.price[kept],
    )


def _estimated(cells: Cells) -> Elasticity:
    return elasticity.log_log(
        cells.quantity,
        cells.price,
        fixed=[cells.product, cells.week],
        group=cells.group,
        cluster=cells.product,
    )


def _told(found: Elasticity) -> list[dict[str, Any]]:
    """Return estimates as rows: group, estimate, interval, and the estimate drawn to the mean."""
    between = elasticity.interval(found)
    drawn, _ = elasticity.shrunk(found)
    return [
        {
            "group": str(name),
            "estimate": float(found.estimate[row]),
            "low": float(between[row, 0]),
            "high": float(between[row, 1]),
            "shrunk": float(drawn[row]),
        }
        for row, name in enumerate(found.group.tolist())
    ]
