"""The panel's households one by one: how each answers to discounts later, what was known before.

Time is cut in two. What a decision may know, the traits and the segments, is computed from weeks
1-20. The truth is fitted to weeks 21-40 alone (:mod:`bandits.customers.response`), so that traits
are worth something only as far as households stay as they were.

**Truth.** As in :mod:`.world`, a row is a household in the shop in a week, and a kind of product of
the category that it bought in weeks 1-20; it converts when the household buys that kind in that
week, and depths are the index of that module. Here every household has a level and a slope of its
own, drawn to those of all by empirical Bayes. The conversion of (household, arm) is the mean over
all rows' kinds and weeks, the same ones for everybody, so that households differ in nothing but
what they did in weeks 21-40. A purchase is worth one of 100 equally likely list values, those of
the category's purchases in these weeks; margins are those of the demo.

**Who comes.** Every household as often, and in the order, as it was in the shop in weeks 21-40.

What :mod:`.world` says of discounts that were not randomised holds here too.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandits import features
from bandits.customers import response
from bandits.customers.response import Response
from bandits.recommender import interactions
from bandits.recommender.interactions import Interactions
from service.demo import world
from service.demo.panel import LAST_WEEK, Panel
from service.demo.segments import CUT_WEEK, Households, households, segment_of
from service.traits import fit, history
from service.traits.history import Deeds, Receipts, Shop
from service.traits.response import by_kind, standard

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEPTH = np.array([percent for _, percent in world.ARMS]) / 100
POINTS = 50
GROUPS = 5
ALL = "all four"


class Known(NamedTuple):
    """What weeks 1-20 say of N households: attributes, segments (N,) and traits by name (N,)."""

    households: Households
    segment: Ints
    traits: dict[str, NDArray[Any]]
    summary: dict[str, Any]


class Category(NamedTuple):
    """One category's campaign over the H households that bought of it before.

    Attributes:
        name: the category.
        row: (H,) their places among the known households.
        conversion: (H, A) the truth of each at each depth.
        value_minor: (100,) what a purchase may be worth.
        visits: (V,) who comes, by place among the H, in order.
        day: (V,) on which day.
        later: the response in weeks 21-40, of all N households: the truth is made of it.
        earlier: the response in weeks 1-20, of all N households, from their purchases alone.
        foretold: the same, drawn to what all other traits foretell.
    """

    name: str
    row: Ints
    conversion: Floats
    value_minor: Ints
    visits: Ints
    day: Ints
    later: Response
    earlier: Response
    foretold: Response


class Seen(NamedTuple):
    """What N households did in a category of K kinds of product, in 40 weeks.

    Attributes:
        bought: (N, K, 40) who bought which kind in which week.
        present: (N, 40) who was in the shop.
        usual: (N, K) which kinds a household had bought up to some week, and may be offered.
        depth: (K, 40) the discount in force; not a number where the kind was not sold.
    """

    bought: NDArray[np.bool_]
    present: NDArray[np.bool_]
    usual: NDArray[np.bool_]
    depth: Floats


class Rows(NamedTuple):
    """What a response is fitted to: (R,) each."""

    unit: Ints
    kind: Ints
    week: Ints
    depth: Floats
    bought: NDArray[np.bool_]


def known(panel: Panel, *, until: int = CUT_WEEK) -> Known:
    """Return the households known at the end of week 20, with traits from weeks up to ``until``."""
    found = households(panel)
    fitted = fit.fit(_shop(panel, until))
    return Known(found, segment_of(found), fitted.traits, fitted.summary)


def choices(panel: Panel, *, until: int = CUT_WEEK) -> Interactions:
    """Return which kinds of product the known households bought in weeks up to ``until``."""
    shop = _shop(panel, until)
    kinds = np.unique(pc.drop_null(panel.products.column("kind")).to_numpy().astype(str))
    bought = shop.kinds[shop.receipts.product].astype(str)
    named = bought != ""
    item = np.searchsorted(kinds, bought[named])
    return interactions.interactions(
        shop.receipts.unit[named], item, users=len(shop.units), items=len(kinds)
    )


def seen(panel: Panel, before: Known, name: str, *, until: int = CUT_WEEK) -> Seen:
    """Return what the known households did in a category; usual is what they had bought by then."""
    people = before.households
    kind, row, kinds = world._kinds(panel, name, people)
    bought, present = _bought(panel, kind, row, (people.id.size, kinds))
    usual: NDArray[np.bool_] = np.asarray(bought[:, :, :until].any(axis=2))
    return Seen(bought, present, usual, world.depths(panel, kind, kinds))


def rows(found: Seen, weeks: Ints) -> Rows:
    """Return who could have bought a usual kind in some weeks (from 0), being in the shop."""
    depth = found.depth[:, weeks]
    possible = found.usual[:, :, None] & found.present[:, None, weeks] & np.isfinite(depth)[None]
    unit, kind, week = np.nonzero(possible)
    bought = found.bought[:, :, weeks][unit, kind, week]
    return Rows(unit, kind, weeks[week], depth[kind, week], bought)


def respond(some: Rows, *, units: int, told: Floats | None = None) -> Response:
    """Return the response of all households, drawn to what ``told`` (N, D) foretells."""
    return response.fit(
        some.unit,
        some.depth,
        some.bought,
        units=units,
        fixed=[some.kind, some.week - some.week.min(initial=LAST_WEEK)],
        traits=told,
    )


def category(panel: Panel, before: Known, name: str) -> Category:
    """Return the campaign of a category."""
    kind, row, _ = world._kinds(panel, name, before.households)
    found, units = seen(panel, before, name), len(before.segment)
    early, late = (rows(found, weeks) for weeks in np.split(np.arange(LAST_WEEK), [CUT_WEEK]))
    earlier = respond(early, units=units)
    foretold = respond(early, units=units, told=numbers(before)[ALL])
    later = respond(late, units=units)
    chosen = np.unique(late.unit)
    base = np.quantile(later.base, (np.arange(POINTS) + 0.5) / POINTS)
    visits, day = _visits(panel, row, chosen)
    return Category(
        name=name,
        row=chosen,
        conversion=response.chance(later, DEPTH, base=base)[chosen],
        value_minor=_values(panel, kind, row, found.usual),
        visits=visits,
        day=day,
        later=later,
        earlier=earlier,
        foretold=foretold,
    )


def profit_minor(campaign: Category) -> Floats:
    """Return the expected profit (H, A) of an offer, in minor units."""
    value = float(campaign.value_minor.mean())
    out: Floats = campaign.conversion * (world.MARGIN_RATE - DEPTH) * value
    return out


def numbers(before: Known) -> dict[str, Floats]:
    """Return what weeks 1-20 say of all households (N, D), by what it is made of.

    Numbers are standardised over all households known at the end of week 20.
    """
    sets = {"none": np.zeros((len(before.segment), 0))} | by_kind(before.traits)
    return sets | {ALL: np.hstack(list(sets.values()))}


def contexts(before: Known, campaign: Category) -> dict[str, Ints]:
    """Return each household's quantised features (H, D), by what they are made of."""
    sets, own = numbers(before), campaign.earlier
    sets["own response"] = np.stack([standard(own.level), standard(own.tilt)], axis=1)
    sets["all and own response"] = np.hstack([sets[ALL], sets["own response"]])
    return {name: features.quantise(values[campaign.row]) for name, values in sets.items()}


def groupings(before: Known, campaign: Category) -> dict[str, Ints]:
    """Return each household's group (H,), by what the groups are made of: traits as segments.

    ``none`` are the demo's five segments and ``by chance`` five at random. The last three are
    fifths of the slope: as the four traits foretell it, as the household's own purchases in the
    category say, and as both together do.
    """
    persona = np.unique(before.traits["persona"].astype(str), return_inverse=True)[1]
    row = campaign.row
    return {
        "none": before.segment[row],
        "by chance": np.random.default_rng(0).integers(0, GROUPS, len(row)),
        "persona": persona[row],
        "all four": fifths(campaign.foretold.foretold[1, row]),
        "own response": fifths(campaign.earlier.tilt[row]),
        "all and own response": fifths(campaign.foretold.tilt[row]),
    }


def fifths(values: Floats) -> Ints:
    """Return which fifth of all each value lies in, from 0."""
    cuts = np.quantile(values, np.arange(1, GROUPS) / GROUPS)
    return np.searchsorted(cuts, values).astype(np.int64)


def largest(panel: Panel, count: int) -> list[str]:
    """Return the categories with the most receipt lines in weeks 1-20, largest first."""
    sold, names, _ = _coded_categories(panel)
    early = (panel.column("week") <= CUT_WEEK) & (sold >= 0)
    lines = np.bincount(sold[early], minlength=len(names))
    return [names[place] for place in np.argsort(-lines, kind="stable")[:count].tolist()]


def _coded_categories(panel: Panel) -> tuple[Ints, list[str], Ints]:
    """Return each line's category (-1: none), the categories' names, and the products in order."""
    table = panel.products.filter(pc.is_valid(panel.products.column("category")))
    table = table.sort_by("product_id")
    names, code = np.unique(
        np.array(table.column("category").to_pylist(), dtype=np.str_), return_inverse=True
    )
    items = table.column("product_id").to_numpy()
    item = world._lookup(items, panel.column("product_id"))
    return np.where(item >= 0, code[item], -1), names.tolist(), items


def _shop(panel: Panel, until: int) -> Shop:
    """Return the weeks up to ``until`` as the history that traits are computed from."""
    units = np.unique(panel.column("household")[panel.column("week") <= CUT_WEEK])
    early = panel.column("week") <= until
    unit = np.searchsorted(units, panel.column("household")[early])
    products, product = np.unique(panel.column("product_id")[early], return_inverse=True)
    named = panel.products.sort_by("product_id")
    place = world._lookup(named.column("product_id").to_numpy(), products)
    before, paid = (panel.column(name)[early] for name in ("list_minor", "paid_minor"))
    receipts = Receipts(
        unit,
        product,
        history._winsorised(panel.column("quantity")[early]),
        history._winsorised(paid),
        history._winsorised(before - paid),
        panel.column("bought_at")[early].astype("datetime64[D]").astype(np.int64),
    )
    department, category, kind = (
        np.append(pc.fill_null(named.column(name), ""), [""])[place].astype(object)
        for name in ("department", "category", "kind")
    )
    none = np.zeros(0, np.int64)
    return Shop(
        units.astype(str),
        products.astype(str),
        department,
        category,
        kind,
        np.ones(len(products), np.bool_),
        receipts,
        Deeds(none, none, np.zeros(0), none),
    )


def _bought(
    panel: Panel, kind: Ints, row: Ints, shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return who bought which kind in which week (N, K, 40), and who was in the shop (N, 40)."""
    week = panel.column("week") - 1
    bought = np.zeros((*shape, LAST_WEEK), np.bool_)
    present = np.zeros((shape[0], LAST_WEEK), np.bool_)
    seen, inside = row >= 0, (row >= 0) & (kind >= 0)
    bought[row[inside], kind[inside], week[inside]] = True
    present[row[seen], week[seen]] = True
    return bought, present


def _values(panel: Panel, kind: Ints, row: Ints, usual: NDArray[np.bool_]) -> Ints:
    """Return the list-value quantiles of the purchases in weeks 21-40."""
    late = (panel.column("week") > CUT_WEEK) & (row >= 0) & (kind >= 0)
    value, *_ = world._purchases(panel, late, row, kind, usual.astype(np.float64))
    at = (np.arange(world.LIST_VALUES) + 0.5) / world.LIST_VALUES
    return np.rint(np.quantile(value, at)).astype(np.int64)


def _visits(panel: Panel, row: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    """Return who was in the shop on which day of weeks 21-40, by day: one row per basket."""
    late = (panel.column("week") > CUT_WEEK) & np.isin(row, chosen)
    basket, first = np.unique(panel.column("basket")[late], return_index=True)
    day = panel.column("bought_at")[late][first].astype("datetime64[D]").astype(np.int64)
    order = np.lexsort((basket, day))
    return np.searchsorted(chosen, row[late][first])[order], (day - day.min())[order]
