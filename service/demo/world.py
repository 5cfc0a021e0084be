"""How the panel's households respond to discounts: the demo's hidden truth, fitted to the panel.

**Opportunities.** The campaign is about the panel's best-selling category. A shopper of the demo is
one *opportunity*: a household that has bought a kind of product of that category (such as twelve-
packs of cans) in weeks 1-20, and is in the shop in one of the weeks 21-40. Segments come from weeks
1-20 too, so that nothing that is explained is used to explain it. The opportunity converts when
the household buys that kind in that week.

**Depth.** The discount in force for a kind in a week is an index over its items: each item's
discount (loyalty card, coupon and coupon match, against list value) over all its receipts of the
week, weighted by the item's sales in weeks 1-20. Fixed weights, because current sales would shift
towards whatever is discounted. What a household itself paid is not used: coupons are only recorded
when something is bought.

**Model.** By maximum likelihood, with one slope per segment (of any sign) and full effects of kind,
segment and week, so that neither popular kinds nor busy or festive weeks pass for the effect of a
discount::

    P(buys) = sigmoid(kind + segment + week + slope[segment] * depth)

The true conversion of (segment, arm) is the mean of this over the segment's own opportunities at
the arm's depth. A purchase is worth one of 100 equally likely list values, the quantiles of that
segment's purchases. The value does not grow with the discount here, which is on the careful side.

**What it is not.** The panel's discounts were not randomised: a promotion comes with displays and
mailers. With the panel's own display and mailer shares as further terms the slopes fall by about a
third, so the demo's customers answer to a promotion as that shop ran it, not to a price alone.
Choosing another kind within the category counts as buying, stocking up too. The panel has no
costs: a margin of 45 % of list value is an assumption (at 40 % no discount is best in nearly every
segment; at 45 % the best arm differs between segments).
"""

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandits import simulate
from service.demo.panel import LAST_WEEK, Panel
from service.demo.segments import CUT_WEEK, KEYS, Households, households, segment_of
from service.traits import response

ARMS = (("none", 0.0), ("five", 5.0), ("ten", 10.0), ("twenty", 20.0), ("thirty", 30.0))
MARGIN_RATE = 0.45
LIST_VALUES = 100
RIDGE = 1e-3

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Counts(NamedTuple):
    """What the fit reads. Letters: ``S`` segments, ``K`` kinds, ``W`` weeks (21-40).

    Attributes:
        offered: (S, K, W) opportunities.
        bought: (S, K, W) opportunities that converted.
        depth: (K, W) discount in force, 0 to 1; NaN where the kind was not sold that week.
        weight: (N,) opportunities of every household.
        basket_minor: (S, Q) list-value quantiles of the purchases.
        typical_minor: mean list value of a purchase in weeks 1-20: what a marketer would know.
    """

    offered: Floats
    bought: Floats
    depth: Floats
    weight: Floats
    basket_minor: Ints
    typical_minor: int


class Fit(NamedTuple):
    """The fitted response.

    Attributes:
        category: the product category.
        slope: (S,) change of the log odds per unit of depth.
        slope_error: (S,) its standard error.
        opportunities: how many were fitted to.
        world: the truth that follows.
        known: the households that may visit, N of them.
        segment: (N,) their segments.
        weight: (N,) how often each of them visits, relatively.
        typical_minor: mean list value of a purchase in weeks 1-20, before anything was fitted.
    """

    category: str
    slope: Floats
    slope_error: Floats
    opportunities: int
    world: simulate.World
    known: Households
    segment: Ints
    weight: Floats
    typical_minor: int


def best_selling_category(panel: Panel) -> str:
    """Return the category with the most receipt lines in weeks 1-20."""
    early = panel.lines.filter(pc.less_equal(panel.lines.column("week"), CUT_WEEK))
    sold = early.select(["product_id"]).join(
        panel.products.select(["product_id", "category"]), "product_id", join_type="inner"
    )
    counts = sold.group_by("category").aggregate([("product_id", "count")])
    ranked = counts.sort_by([("product_id_count", "descending"), ("category", "ascending")])
    best = [name for name in ranked.column("category").to_pylist() if name]
    if not best:
        raise ValueError("the panel's products have no categories")
    return str(best[0])


def fit(panel: Panel) -> Fit:
    """Return the response model of the panel's best-selling category, by maximum likelihood."""
    known = households(panel)
    segment = segment_of(known)
    category = best_selling_category(panel)
    counts = count(panel, category=category, known=known, segment=segment)
    used = (counts.offered > 0) & np.isfinite(counts.depth)[None]
    parameters, covariance, design = _maximum_likelihood(counts, used)
    slopes = len(KEYS)
    world = simulate.World(
        conversion=_conversion(counts, used, design, parameters),
        basket_minor=counts.basket_minor,
        percent=np.array([percent for _, percent in ARMS]),
        margin_rate=MARGIN_RATE,
        share=counts.offered.sum(axis=(1, 2)) / counts.offered.sum(),
    )
    return Fit(
        category=category,
        slope=parameters[:slopes],
        slope_error=np.sqrt(np.diag(covariance))[:slopes],
        opportunities=int(counts.offered[used].sum()),
        world=simulate.checked(world),
        known=known,
        segment=segment,
        weight=counts.weight,
        typical_minor=counts.typical_minor,
    )


def count(panel: Panel, *, category: str, known: Households, segment: Ints) -> Counts:
    """Return the opportunities and purchases of one category, weeks 21-40."""
    kind_of_line, row, kinds = _kinds(panel, category, known)
    week = panel.column("week")
    inside = kind_of_line >= 0
    early, late = week <= CUT_WEEK, week > CUT_WEEK
    weeks = LAST_WEEK - CUT_WEEK

    usual = np.zeros((known.id.size, kinds))
    usual[row[inside & early], kind_of_line[inside & early]] = 1.0
    present = np.zeros((known.id.size, weeks))
    seen = late & (row >= 0)
    present[row[seen], week[seen] - CUT_WEEK - 1] = 1.0

    value, buyer, kind, late_week = _purchases(panel, seen & inside, row, kind_of_line, usual)
    offered = np.stack([usual[segment == s].T @ present[segment == s] for s in range(len(KEYS))])
    bought = np.zeros(offered.shape)
    np.add.at(bought, (segment[buyer], kind, late_week), 1.0)
    typical, *_ = _purchases(panel, early & inside, row, kind_of_line, usual)
    return Counts(
        offered=offered,
        bought=bought,
        depth=depths(panel, kind_of_line, kinds)[:, CUT_WEEK:],
        weight=usual.sum(axis=1) * present.sum(axis=1),
        basket_minor=_quantiles(value, segment[buyer]),
        typical_minor=round(float(typical.mean())),
    )


def _purchases(
    panel: Panel, chosen: NDArray[np.bool_], row: Ints, kind: Ints, usual: Floats
) -> tuple[Floats, Ints, Ints, Ints]:
    """Return list value, household row, kind and week (from 0 at week 21) of every purchase.

    A purchase is all that a household bought of one of its usual kinds in one week.
    """
    held = np.flatnonzero(chosen)
    held = held[usual[row[held], kind[held]] > 0]
    shape = (*usual.shape, LAST_WEEK)
    cell = np.ravel_multi_index((row[held], kind[held], panel.column("week")[held] - 1), shape)
    purchase, inverse = np.unique(cell, return_inverse=True)
    value = np.bincount(inverse, weights=panel.column("list_minor")[held])
    buyer, bought_kind, week = np.unravel_index(purchase, shape)
    buyer, bought_kind, week = (axis.astype(np.int64) for axis in (buyer, bought_kind, week))
    return value.astype(np.float64), buyer, bought_kind, week - CUT_WEEK


def _kinds(panel: Panel, category: str, known: Households) -> tuple[Ints, Ints, int]:
    """Return each line's kind within the category and household row (-1: none), and K."""
    chosen = panel.products.filter(pc.equal(panel.products.column("category"), category))
    chosen = chosen.filter(pc.is_valid(chosen.column("kind"))).sort_by("product_id")
    items = chosen.column("product_id").to_numpy()
    names, kind_of_item = np.unique(
        np.array(chosen.column("kind").to_pylist(), dtype=np.str_), return_inverse=True
    )
    item = _lookup(items, panel.column("product_id"))
    kind = np.where(item >= 0, kind_of_item[item], -1)
    return kind, _lookup(known.id, panel.column("household")), names.size


def _lookup(table: Ints, wanted: Ints) -> Ints:
    """Return the position of every wanted number in the ascending table, -1 where absent."""
    place = np.minimum(np.searchsorted(table, wanted), table.size - 1)
    return np.where(table[place] == wanted, place, -1).astype(np.int64)


def depths(panel: Panel, kind_of_line: Ints, kinds: int) -> Floats:
    """Return the (K, 40) discount in force: item depths by week under fixed weights."""
    inside = kind_of_line >= 0
    product, week, whole, paid = (
        panel.column(name)[inside] for name in ("product_id", "week", "list_minor", "paid_minor")
    )
    return response.depths(
        product, kind_of_line[inside], week - 1, whole, whole - paid, shape=(kinds, LAST_WEEK),
        until=CUT_WEEK,
    )  # fmt: skip


def _quantiles(value: Floats, segment: Ints) -> Ints:
    """Return the (S, Q) list-value quantiles; a segment without purchases takes everyone's."""
    at = (np.arange(LIST_VALUES) + 0.5) / LIST_VALUES
    if value.size == 0:
        raise ValueError("no purchases in weeks 21-40 to take basket values from")
    rows = []
    for index in range(len(KEYS)):
        own = value[segment == index]
        rows.append(np.rint(np.quantile(own if own.size else value, at)))
    return np.array(rows).astype(np.int64)


def _maximum_likelihood(counts: Counts, used: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Return parameters (P,), their covariance (P, P), and the design (rows, P), by Newton.

    The first S parameters are the slopes. A faint ridge keeps a kind nobody buys finite.
    """
    segments, kinds, weeks = counts.offered.shape
    s, k, w = np.nonzero(used)
    depth = counts.depth[k, w]
    one = np.eye
    design = np.hstack(
        [one(segments)[s] * depth[:, None], one(segments)[s], one(kinds)[k], one(weeks)[w]]
    )
    n, y = counts.offered[used], counts.bought[used]
    ridge = RIDGE * np.eye(design.shape[1])
    parameters = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-(design @ parameters)))
        gradient = design.T @ (y - n * p) - RIDGE * parameters
        information = (design * (n * p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(information, gradient)
        parameters = parameters + step
        if np.abs(step).max() < 1e-9:
            covariance: Floats = np.linalg.inv(information).astype(np.float64)
            return parameters, covariance, design
    raise ArithmeticError("the response model did not converge")


def _conversion(
    counts: Counts, used: NDArray[np.bool_], design: Floats, parameters: Floats
) -> Floats:
    """Return the (S, A) mean conversion of each segment's own opportunities at every depth."""
    s, k, w = np.nonzero(used)
    n = counts.offered[used]
    slope = parameters[s]
    at_none = design @ parameters - slope * counts.depth[k, w]
    rows = []
    for _, percent in ARMS:
        p = 1 / (1 + np.exp(-(at_none + slope * percent / 100)))
        rows.append(
            np.bincount(s, weights=n * p, minlength=len(KEYS))
            / np.maximum(np.bincount(s, weights=n, minlength=len(KEYS)), 1)
        )
    return np.array(rows).T
