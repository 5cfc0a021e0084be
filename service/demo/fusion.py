"""What recommender and response foretell of the panel's households: apart, jointly, and together.

Everybody's slope (how much a discount raises the odds that they buy) is foretold from weeks 1-20,
by category, in these ways:

- ``no taste``, ``taste``, ``all four``: traits are fitted first, the recommender's embedding
  (``taste``) among them, then the response is drawn to what they foretell
  (:mod:`bandits.customers.response`): the separate pipeline;
- ``own response``: a household's own purchases in the category;
- ``response network``: one vector per household, out of its traits but taste and an embedding,
  learnt from the answers in all categories at once;
- ``joint network``: the same, learnt from the kinds of product that households buy as well
  (:mod:`bandits.recommender.joint`);
- ``mean``, ``stacked``: ensembles of `MEMBERS`, which have an equal say, or the one that foretells
  best.

What has to be chosen (how much an embedding may say, the weight of the recommender's loss, what
each member has to say in ``stacked``) is chosen inside weeks 1-20: fitted to weeks 1-12, judged by
the slopes that households have in weeks 13-20, by the correlation between households, the mean over
categories.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from bandits.recommender import joint
from bandits.recommender.interactions import Interactions
from bandits.recommender.joint import Joint, Occasions
from service.demo import households
from service.demo.households import ALL, Known, Rows
from service.demo.panel import Panel
from service.demo.segments import CUT_WEEK
from service.traits.response import standard

Floats = NDArray[np.float64]

SPLIT_WEEK = 12
MEMBERS = ("taste", ALL, "own response", "joint network")
PRECISIONS = (3.0, 10.0, 30.0)
WEIGHTS = (0.01, 0.1, 1.0)
STEPS = 1000


class Half(NamedTuple):
    """What is known of N households at the end of a week, and their rows in C categories."""

    before: Known
    choices: Interactions
    rows: list[Rows]


class Chosen(NamedTuple):
    """What the split has chosen.

    Attributes:
        alone: precision of the response network.
        weight: of the recommender's loss in the joint network.
        precision: of the joint network.
        says: (M,) what each member has to say in the stacked ensemble, not negative.
        tried: the correlation of each setting (weight, precision), and of each separate way.
    """

    alone: float
    weight: float
    precision: float
    says: Floats
    tried: dict[tuple[float, float] | str, float]


def half(panel: Panel, names: Sequence[str], *, before: Known | None = None) -> Half:
    """Return what weeks 1-20 say; ``before`` is not fitted again where it is given."""
    return _half(panel, names, CUT_WEEK, before or households.known(panel))


def _half(panel: Panel, names: Sequence[str], until: int, before: Known) -> Half:
    weeks = np.arange(until)
    seen = (households.seen(panel, before, name, until=until) for name in names)
    rows = [households.rows(one, weeks) for one in seen]
    return Half(before, households.choices(panel, until=until), rows)


def chosen(
    panel: Panel, names: Sequence[str], *, steps: int = STEPS,
    precisions: Sequence[float] = PRECISIONS, weights: Sequence[float] = WEIGHTS,
) -> Chosen:  # fmt: skip
    """Return what the time split inside weeks 1-20 chooses for the categories together."""
    early = _half(panel, names, SPLIT_WEEK, households.known(panel, until=SPLIT_WEEK))
    later = _later(panel, names, early.before)
    apart = separate(early)
    fitted = {
        (weight, precision): network(early, weight=weight, precision=precision, steps=steps).slope
        for weight in (0.0, *weights)
        for precision in precisions
    }
    found = {setting: agreement(slope, later) for setting, slope in fitted.items()}
    tried: dict[tuple[float, float] | str, float] = {
        name: agreement(slope, later) for name, slope in apart.items()
    }
    for setting, correlation in found.items():
        tried[setting] = correlation
    alone = max((s for s in found if not s[0]), key=lambda s: found[s])
    best = max((s for s in found if s[0]), key=lambda s: found[s])
    says = _stacked(apart | {"joint network": fitted[best]}, later)
    return Chosen(alone[1], *best, says, tried)


def _later(panel: Panel, names: Sequence[str], before: Known) -> Floats:
    """Return slopes (N, C) in the weeks after the split; not a number of who did not come."""
    weeks, units = np.arange(SPLIT_WEEK, CUT_WEEK), len(before.segment)
    out = np.full((units, len(names)), np.nan)
    for place, name in enumerate(names):
        rows = households.rows(households.seen(panel, before, name, until=SPLIT_WEEK), weeks)
        try:
            found = households.respond(rows, units=units)
        except (ValueError, np.linalg.LinAlgError):
            continue  # too few weeks to tell how far households differ
        who = np.unique(rows.unit)
        out[who, place] = found.tilt[who]
    return out


def agreement(slope: Floats, later: Floats) -> float:
    """Return the correlation between households of two tables (N, C), the mean over categories."""
    found = []
    for one, other in zip(slope.T, later.T, strict=True):
        who = np.isfinite(other)
        if who.any() and one[who].std() > 0 and other[who].std() > 0:
            found.append(float(np.corrcoef(one[who], other[who])[0, 1]))
        elif who.any():
            found.append(0.0)
    return float(np.mean(found))


def _stacked(slopes: dict[str, Floats], later: Floats) -> Floats:
    """Return what each member has to say (M,): least squares over all categories, none below 0."""
    inside = [np.isfinite(column) for column in later.T]
    x = np.stack(
        [
            np.concatenate([standard(slopes[name][who, c]) for c, who in enumerate(inside)])
            for name in MEMBERS
        ],
        axis=1,
    )
    y = np.concatenate([standard(later[who, c]) for c, who in enumerate(inside)])
    says: Floats = optimize.nnls(x, y)[0]
    return says


def separate(known: Half) -> dict[str, Floats]:
    """Return the slopes (N, C) that the separate ways foretell; the mean of all is left out."""
    sets = households.numbers(known.before)
    sets["no taste"] = _features(known.before)
    units = len(known.before.segment)
    own = [households.respond(rows, units=units).tilt for rows in known.rows]
    out = {"own response": np.stack(own, axis=1)}
    for name in ("no taste", "taste", ALL):
        told = [households.respond(rows, units=units, told=sets[name]) for rows in known.rows]
        out[name] = np.stack([found.foretold[1] for found in told], axis=1)
    return out


def _features(before: Known) -> Floats:
    """Return the traits (N, D) without the recommender's, those that differ."""
    sets = households.numbers(before)
    found = np.hstack([sets[name] for name in ("lifetime value", "persona", "elasticity")])
    out: Floats = found[:, found.std(axis=0) > 1e-9]
    return out


def network(
    known: Half, *, weight: float, precision: float, steps: int = STEPS, seed: int = 0
) -> Joint:
    """Return the network of all categories; with weight 0 it knows nothing of what was bought."""
    rows = known.rows
    of = np.repeat(np.arange(len(rows)), [len(one.unit) for one in rows])

    def beside(part: Callable[[Rows], NDArray[np.generic]]) -> NDArray[np.generic]:
        return np.concatenate([part(one) for one in rows])

    # Kinds and weeks have an effect of their own in each category.
    fixed = [
        np.unique(np.stack([of, beside(part)]), axis=1, return_inverse=True)[1].reshape(-1)
        for part in (lambda one: one.kind, lambda one: one.week)
    ]
    occasions = Occasions(
        beside(lambda one: one.unit), of, np.stack(fixed),
        beside(lambda one: one.depth), beside(lambda one: one.bought),
    )  # fmt: skip
    features = np.stack([standard(one) for one in _features(known.before).T], axis=1)
    return joint.fit(
        known.choices, occasions, weight=weight, precision=precision, steps=steps, seed=seed,
        user_features=features,
    )  # fmt: skip


def foretold(known: Half, told: Chosen, *, steps: int = STEPS) -> tuple[dict[str, Floats], Joint]:
    """Return the slopes (N, C) by every way, and the joint network."""
    out = separate(known)
    alone = network(known, weight=0.0, precision=told.alone, steps=steps)
    both = network(known, weight=told.weight, precision=told.precision, steps=steps)
    out |= {"response network": alone.slope, "joint network": both.slope}
    equal = np.ones(len(MEMBERS))
    return out | {
        "mean": _weighed(out, known, equal),
        "stacked": _weighed(out, known, told.says),
    }, both


def _weighed(slopes: dict[str, Floats], known: Half, says: Floats) -> Floats:
    """Return what members say together (N, C), each standardised over a category's customers."""
    out = np.zeros(slopes[ALL].shape)
    for place, rows in enumerate(known.rows):
        who = np.unique(rows.unit)
        for name, say in zip(MEMBERS, says, strict=True):
            out[who, place] += say * standard(slopes[name][who, place])
    return out
