"""Price elasticity: by how many per cent demand changes when the price changes by one per cent.

Five estimates of ε in ln q = ε ln p + what else moves demand, each with intervals and by group
(brand, persona, product group):

- :func:`log_log`: least squares on logarithms, with fixed effects;
- :func:`counts`: Poisson on the quantities themselves, zeros included, or negative binomial (NB2,
  variance μ + φ μ²) where they are spread more widely;
- :func:`double_ml`: what a flexible regression on confounders cannot explain of ln q, on what it
  cannot explain of ln p: ε = Σ p̃ q̃ / Σ p̃², cross-fitted;
- :func:`randomised`: from a campaign's own log, where depths were drawn with logged propensities.

**What prices of the past cannot say.** Products are featured (advertised, displayed) when they are
cheap, and customers stock up when they are: both are counted as an effect of price. Only
:func:`randomised` is free of it; the others say in ``featuring`` whether featuring was held
constant. Split groups by it to see: in the orange-juice data demand reacts more to prices that are
featured.

:func:`shrunk` draws groups together as far as they are uncertain; :func:`depth_slope` makes an
elasticity the prior of ``thompson_hierarchical``.

Source: METHODS of the field: Cameron and Trivedi, "Regression analysis of count data" (2013);
Chernozhukov et al., Econometrics Journal 21 (2018); DerSimonian and Laird, Controlled Clinical
Trials 7 (1986). Clustered covariances: :mod:`bandits.customers.fixed_effects`.

Letters: ``R`` rows, ``G`` groups, ``A`` arms, ``W`` confounders.

>>> rng = np.random.default_rng(0)
>>> price, store = np.exp(rng.normal(size=4000) / 5), rng.integers(0, 20, 4000)
>>> quantity = np.exp(2.0 + store / 10 - 2.5 * np.log(price) + rng.normal(size=4000) / 3)
>>> found = log_log(quantity, price, fixed=[store])
>>> bool(abs(found.estimate[0] + 2.5) < 0.1), found.featuring
(True, 'unknown')
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from bandits.customers import fixed_effects
from bandits.customers.fixed_effects import Effects, Floats
from bandits.customers.folds import by_cluster
from bandits.evaluation import demand
from bandits.posteriors.shared import Slope

#: What is known of featuring: it was not told, it was told and held constant, or prices were drawn.
Featuring = Literal["unknown", "held constant", "randomised"]
#: ``(x_train, y_train, x_new) -> prediction``: any regression, for :func:`double_ml`.
Nuisance = Callable[[Floats, Floats, Floats], Floats]

#: Steps of a reweighted regression, and the change of the deviance (per row) that ends them.
STEPS, SETTLED = 100, 1e-10
#: The one-sided level at which counts are held to be spread more widely than Poisson's.
OVERDISPERSED = 0.05
#: Penalties of the ridge, per row, on standardised columns; cross-validation picks one.
PENALTIES = np.logspace(-6, 1, 15)


class Elasticity(NamedTuple):
    """Elasticities of some groups.

    Attributes:
        group: (G,) the groups' names, ascending; one, "all", where there are none.
        estimate: (G,) ε.
        covariance: (G, G) of the estimates, robust and clustered.
        rows: how many were used.
        clusters: how many they fall into.
        model: "log-log", "Poisson", "negative binomial", "double ML" or "randomised".
        featuring: whether featuring was held constant.
        dispersion: φ of a negative binomial, else 0.
    """

    group: NDArray[Any]
    estimate: Floats
    covariance: Floats
    rows: int
    clusters: int
    model: str
    featuring: Featuring
    dispersion: float = 0.0

    @property
    def error(self) -> Floats:
        """The standard errors (G,)."""
        return np.sqrt(np.diag(self.covariance))


def interval(found: Elasticity, *, level: float = 0.95) -> Floats:
    """The intervals (G, 2): Student's t with the clusters less one degrees of freedom."""
    reach = stats.t.ppf(0.5 + level / 2, found.clusters - 1) * found.error
    return np.stack([found.estimate - reach, found.estimate + reach], axis=1)


def log_log(
    quantity: Floats, price: Floats, *, fixed: Sequence[NDArray[Any]] = (),
    group: NDArray[Any] | None = None, cluster: NDArray[Any] | None = None,
    featured: NDArray[Any] | None = None, controls: Floats | None = None,
) -> Elasticity:  # fmt: skip
    """Least squares of ln q on ln p; each group has a level and an elasticity of its own.

    Args:
        quantity: (R,) above 0; rows without a sale have no logarithm: :func:`counts` takes them.
        price: (R,) above 0.
        fixed: fixed effects, each (R,): store, week, product, household.
        group: (R,) whose elasticity it is.
        cluster: (R,) rows of one value may depend on each other: the store, the household.
        featured: (R,) how much the product was featured; held constant, by group.
        controls: (R, C) what else to hold constant.

    Raises:
        ValueError: a quantity or price is not above 0, lengths differ, or the price does not vary.
    """
    quantity, price = _positive("quantity", quantity), _positive("price", price)
    names, x, effects = _design(price, fixed, group, featured, controls)
    fit = fixed_effects.least_squares(np.log(quantity), x, effects, cluster=cluster)
    known: Featuring = "unknown" if featured is None else "held constant"
    few = slice(len(names))
    return Elasticity(
        names, fit.estimate[few], fit.covariance[few, few], len(x), fit.clusters, "log-log", known
    )


def counts(
    quantity: Floats, price: Floats, *, family: Literal["auto", "poisson", "negative binomial"]
    = "auto", fixed: Sequence[NDArray[Any]] = (), group: NDArray[Any] | None = None,
    cluster: NDArray[Any] | None = None, featured: NDArray[Any] | None = None,
    controls: Floats | None = None,
) -> Elasticity:  # fmt: skip
    """As :func:`log_log`, for quantities that may be 0, by their expectation exp(ε ln p + ...).

    Levels of an effect in which nothing was ever sold say nothing of prices and are left out.

    Args:
        quantity: (R,) at least 0; whole numbers are not demanded.
        price: as in :func:`log_log`.
        family: "auto" takes the negative binomial where a regression of Poisson's squared residuals
            finds more spread than Poisson's (Cameron and Trivedi, 1990).
        fixed: as in :func:`log_log`.
        group: as in :func:`log_log`.
        cluster: as in :func:`log_log`.
        featured: as in :func:`log_log`.
        controls: as in :func:`log_log`.

    Raises:
        ValueError: as in :func:`log_log`, nothing was sold, or the steps do not settle.
    """
    y, price = np.asarray(quantity, np.float64), _positive("price", price)
    if not (np.isfinite(y).all() and (y >= 0).all() and (y > 0).any()):
        raise ValueError("quantity: must be at least 0, and above 0 somewhere")
    names, x, effects = _design(price, fixed, group, featured, controls)
    kept = _sold(y, effects)
    y, x = y[kept], x[kept]
    effects = fixed_effects.effects([code[kept] for code in effects.codes], rows=len(y))
    cluster = None if cluster is None else np.asarray(cluster)[kept]
    mean, fit, phi = *_reweighted(y, x, effects, cluster, 0.0), 0.0
    if family == "negative binomial" or (family == "auto" and _overdispersed(y, mean)):
        for _ in range(STEPS):
            before, phi = phi, _dispersion(y, mean, free=x.shape[1] + sum(effects.levels))
            mean, fit = _reweighted(y, x, effects, cluster, phi, start=mean)
            if abs(phi - before) <= 1e-8 * (1.0 + phi):
                break
    known: Featuring = "unknown" if featured is None else "held constant"
    few, model = slice(len(names)), "negative binomial" if phi > 0 else "Poisson"
    return Elasticity(
        names, fit.estimate[few], fit.covariance[few, few], len(y), fit.clusters, model, known, phi
    )


def double_ml(
    quantity: Floats, price: Floats, confounders: Floats, *, nuisance: Literal["ridge", "trees"]
    | Nuisance = "ridge", folds: int = 5, seed: int = 0, group: NDArray[Any] | None = None,
    cluster: NDArray[Any] | None = None, featured: NDArray[Any] | None = None,
) -> Elasticity:  # fmt: skip
    """The elasticity left when confounders have explained what they can of both ln q and ln p.

    The regressions on the confounders are fitted to the other folds; rows of a cluster are in one.

    Args:
        quantity: (R,) above 0.
        price: (R,) above 0.
        confounders: (R, W) numbers; make dummies of categories.
        nuisance: "ridge" (linear, its penalty by leave-one-out), "trees" (LightGBM), or your own.
        folds: at least 2.
        seed: of the split.
        group: (R,) whose elasticity it is; becomes dummies among the confounders as well.
        cluster: as in :func:`log_log`.
        featured: (R,) becomes one more confounder.

    Raises:
        ValueError: as in :func:`log_log`, or there are fewer clusters than folds.
    """
    q, p = np.log(_positive("quantity", quantity)), np.log(_positive("price", price))
    names, codes = _groups(group, len(p))
    columns = [np.asarray(confounders, np.float64), np.eye(len(names))[codes][:, 1:]]
    if featured is not None:
        columns.append(np.asarray(featured, np.float64)[:, None])
    w = np.concatenate(columns, axis=1)
    who = np.arange(len(p)) if cluster is None else cluster
    fold = by_cluster(who, folds, seed=seed)
    regress = (
        {"ridge": _ridge, "trees": _trees}[nuisance] if isinstance(nuisance, str) else nuisance
    )
    left = np.stack([p, q])
    for one in range(folds):
        new = fold == one
        for k, y in enumerate((p, q)):
            left[k, new] -= regress(w[~new], y[~new], w[new])
    x = left[0][:, None] * (codes[:, None] == np.arange(len(names)))
    gram = np.diag(x.T @ x)
    if (gram < 1e-12 * len(p)).any():
        raise ValueError("price: nothing of it is left when the confounders have explained theirs")
    estimate = x.T @ left[1] / gram
    scores = x * (left[1] - x @ estimate)[:, None]
    covariance, clusters = fixed_effects.sandwich(np.diag(1.0 / gram), scores, cluster)
    known: Featuring = "unknown" if featured is None else "held constant"
    return Elasticity(names, estimate, covariance, len(p), clusters, "double ML", known)


def randomised(
    arm: NDArray[np.integer], outcome: Floats, simplex: Floats, depth: Floats, *,
    prediction: Floats | None = None, group: NDArray[Any] | None = None,
    cluster: NDArray[Any] | None = None,
) -> Elasticity:  # fmt: skip
    """The elasticity in a campaign's log, by the propensities that its depths were drawn with.

    Every arm's mean outcome is estimated by AIPW, and a demand curve is laid through the means of a
    group (:mod:`bandits.evaluation.demand`). Rows in which an arm had no chance are left out.
    Intervals are for one look at a log whose propensities are not tiny.

    Args:
        arm: (R,) the arm served.
        outcome: (R,) conversions (0 or 1) or quantities.
        simplex: (R, A) the logged probabilities.
        depth: (A,) of the arms, as a share of the price, below 1.
        prediction: (R, A) expected outcome of every arm, made without the row's own outcome; None
            for the arm's mean in the group, weighted by inverse propensity.
        group: (R,) whose elasticity it is.
        cluster: (R,) the unit, where one has several rows.

    Raises:
        ValueError: shapes disagree, depths are all equal or reach 1, or a group sold nothing.
    """
    y, p = np.asarray(outcome, np.float64), np.asarray(simplex, np.float64)
    if p.shape != (len(y), len(depth)) or len(arm) != len(y):
        raise ValueError("arm and outcome must be (R,), simplex (R, A), depth (A,)")
    names, codes = _groups(group, len(y))
    kept = (p > 0).all(axis=1)
    y, p, arm, codes = y[kept], p[kept], np.asarray(arm)[kept], codes[kept]
    m = _arm_means(arm, y, p, codes) if prediction is None else np.array(prediction)[kept]
    rows, score = np.arange(len(y)), m.astype(np.float64)
    score[rows, arm] += (y - m[rows, arm]) / p[rows, arm]
    estimate, influence = np.zeros(len(names)), np.zeros((len(y), len(names)))
    for g in range(len(names)):
        mine = codes == g
        found = demand.curve(score[mine].mean(axis=0), p[mine].mean(axis=0), np.asarray(depth))
        estimate[g] = found.elasticity
        influence[mine, g] = (score[mine] - found.mean) @ found.weight / mine.sum()
    who = None if cluster is None else np.asarray(cluster)[kept]
    covariance, clusters = fixed_effects.sandwich(np.eye(len(names)), influence, who)
    return Elasticity(names, estimate, covariance, len(y), clusters, "randomised", "randomised")


def shrunk(found: Elasticity) -> tuple[Floats, Floats]:
    """Elasticities (G,) drawn to their mean, and their standard deviations: for use as context.

    How much groups truly differ is estimated from the estimates (DerSimonian and Laird); a group
    that is known no better than groups differ is drawn half way.
    """
    middle, between = _between(found)
    within = found.error**2
    kept = between / (between + within)
    centre = 1.0 / (1.0 / np.maximum(between + within, 1e-300)).sum()
    out = middle + kept * (found.estimate - middle)
    return out, np.sqrt(kept * within + (1.0 - kept) ** 2 * centre)


def depth_slope(
    found: Elasticity, *, depth: Sequence[float] | Floats, rate: float, differ: float = 1.0
) -> Slope:
    """What elasticities say of the effect of a discount's depth on the log odds of a conversion.

    With constant elasticity the chance of a sale at depth d is θ(d) = rate · (1 - d)^ε, so
    d logit θ / dd = -ε / ((1 - d)(1 - θ)). The slope is that of the line nearest to logit θ(d) over
    the depths on offer; for rare sales and small depths it is about -ε. Its spread joins how well ε
    is known, how much groups differ, and ``differ``, for that a campaign is not the past. Hand both
    to ``thompson_hierarchical`` as ``slope`` and ``slope_spread``.

    An elasticity of quantities counts larger baskets too, and one from past prices counts
    featuring: then let ``differ`` be larger.

    Args:
        found: elasticities, of one group or of several.
        depth: the campaign's depths, as shares of the price.
        rate: chance of a conversion without a discount.
        differ: standard deviation between campaigns, log odds per unit of depth.

    Raises:
        ValueError: ``rate`` is not between 0 and 1, or depths are all equal or reach 1.
    """
    d = np.asarray(depth, np.float64)
    if not 0 < rate < 1 or np.ptp(d) <= 1e-9 or d.max() >= 1:
        raise ValueError("rate must be in (0, 1), depths below 1 and not all equal")
    middle, between = _between(found)
    known = 1.0 / (1.0 / np.maximum(between + found.error**2, 1e-300)).sum()
    mean, steep = _line(middle, d, rate), _line(middle + 1e-4, d, rate)
    bend = (steep - mean) / 1e-4
    return Slope(mean, float(np.sqrt(bend**2 * (between + known) + differ**2)))


def _line(elasticity: float, depth: Floats, rate: float) -> float:
    # A chance cannot exceed 1: where the curve would, the odds stop at 99 to 1.
    chance = np.minimum(rate * (1.0 - depth) ** elasticity, 0.99)
    centred = depth - depth.mean()
    return float(centred @ special.logit(chance) / (centred @ centred))


def _between(found: Elasticity) -> tuple[float, float]:
    """The mean over the groups, and the variance between them."""
    within, value = found.error**2, found.estimate
    w = 1.0 / np.maximum(within, 1e-300)
    off = w @ (value - w @ value / w.sum()) ** 2
    room = w.sum() - (w**2).sum() / w.sum()
    between = max((off - len(w) + 1) / room, 0.0) if len(w) > 1 else 0.0
    w = 1.0 / np.maximum(within + between, 1e-300)
    return float(w @ value / w.sum()), float(between)


def _positive(name: str, values: Floats) -> Floats:
    out = np.asarray(values, np.float64)
    if out.ndim != 1 or not (np.isfinite(out).all() and (out > 0).all()):
        raise ValueError(f"{name}: must be (R,), every one above 0")
    return out


def _groups(group: NDArray[Any] | None, rows: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The groups' names, and the group of each row."""
    if group is None:
        return np.array(["all"]), np.zeros(rows, np.int64)
    if len(group) != rows:
        raise ValueError(f"group: must be ({rows},)")
    return np.unique(group), fixed_effects.coded(np.asarray(group))


def _design(
    price: Floats, fixed: Sequence[NDArray[Any]], group: NDArray[Any] | None,
    featured: NDArray[Any] | None, controls: Floats | None,
) -> tuple[NDArray[Any], Floats, Effects]:  # fmt: skip
    """The groups' names, the columns (log prices first), and the effects, groups among them."""
    names, codes = _groups(group, len(price))
    mine = (codes[:, None] == np.arange(len(names))).astype(np.float64)
    columns = [np.log(price)[:, None] * mine]
    if featured is not None:
        columns.append(np.asarray(featured, np.float64)[:, None] * mine)
    if controls is not None:
        columns.append(np.asarray(controls, np.float64))
    if any(len(column) != len(price) for column in columns):
        raise ValueError(f"featured and controls must have {len(price)} rows")
    effects = fixed_effects.effects([codes, *fixed], rows=len(price))
    return names, np.concatenate(columns, axis=1), effects


def _sold(y: Floats, effects: Effects) -> NDArray[np.bool_]:
    """The rows of levels in which something was sold, of every effect."""
    kept, before = np.ones(len(y), bool), -1
    while kept.sum() != before:
        before = kept.sum()
        for code, levels in zip(*effects, strict=True):
            kept &= (np.bincount(code[kept], y[kept], levels) > 0)[code]
    return kept


def _reweighted(
    y: Floats, x: Floats, effects: Effects, cluster: NDArray[Any] | None, phi: float, *,
    start: Floats | None = None,
) -> tuple[Floats, fixed_effects.Fit]:  # fmt: skip
    """The expected counts, and the regression at which reweighting settles."""
    mean, before = (y + y.mean()) / 2 if start is None else start, np.inf
    for _ in range(STEPS):
        weight = mean / (1.0 + phi * mean)
        seen = np.log(mean) + (y - mean) / mean
        fit = fixed_effects.least_squares(seen, x, effects, cluster=cluster, weight=weight)
        mean = np.exp(np.clip(seen - fit.residual, -30.0, 30.0))
        deviance = _deviance(y, mean, phi)
        if abs(deviance - before) < SETTLED * (1.0 + abs(deviance)):
            return mean, fit
        before = deviance
    raise ValueError("quantity: the regression of counts does not settle")


def _deviance(y: Floats, mean: Floats, phi: float) -> float:
    """Of Poisson or the negative binomial, per row."""
    each = special.xlogy(y, y / mean)
    if phi == 0.0:
        return float(2.0 * (each - (y - mean)).mean())
    return float(2.0 * (each - (y + 1 / phi) * np.log1p((y - mean) / (mean + 1 / phi))).mean())


def _overdispersed(y: Floats, mean: Floats) -> bool:
    excess = ((y - mean) ** 2 - y) / mean
    slope = excess @ mean / (mean @ mean)
    scores = mean * (excess - slope * mean)
    return bool(slope / (np.sqrt(scores @ scores) / (mean @ mean)) > stats.norm.isf(OVERDISPERSED))


def _dispersion(y: Floats, mean: Floats, *, free: int) -> float:
    """φ at which Pearson's statistic is what it should be."""
    left = max(len(y) - free, 1)

    def off(phi: float) -> float:
        return float(((y - mean) ** 2 / (mean + phi * mean**2)).sum() - left)

    high = 1.0
    while off(high) > 0 and high < 1e6:
        high *= 4.0
    return float(optimize.brentq(off, 0.0, high)) if off(0.0) > 0 > off(high) else 0.0


def _arm_means(arm: NDArray[np.integer], y: Floats, p: Floats, codes: NDArray[np.int64]) -> Floats:
    """The weighted mean (R, A) of each arm in the row's group; 0 where it was never served."""
    weight = 1.0 / p[np.arange(len(y)), arm]
    shape = (int(codes.max(initial=-1)) + 1, p.shape[1])
    at = np.ravel_multi_index((codes, arm), shape)
    total = np.bincount(at, weight, shape[0] * shape[1])
    sums = np.bincount(at, weight * y, shape[0] * shape[1])
    out: Floats = (sums / np.maximum(total, 1e-300)).reshape(shape)[codes]
    return out


def _ridge(x: Floats, y: Floats, new: Floats) -> Floats:
    """Linear regression; the penalty is the one with the least leave-one-out error."""
    middle, spread = x.mean(axis=0), x.std(axis=0)
    used = spread > 1e-12
    z = (x[:, used] - middle[used]) / spread[used]
    left, value, right = np.linalg.svd(z, full_matrices=False)
    level = y.mean()
    told, best = left.T @ (y - level), (np.inf, np.zeros(z.shape[1]))
    for penalty in PENALTIES * len(y):
        kept = value**2 / (value**2 + penalty)
        lever = (left**2) @ kept + 1.0 / len(y)
        off = ((y - level - left @ (kept * told)) / (1.0 - np.minimum(lever, 0.999999))) ** 2
        if off.mean() < best[0]:
            best = (float(off.mean()), right.T @ (value / (value**2 + penalty) * told))
    out: Floats = level + (new[:, used] - middle[used]) / spread[used] @ best[1]
    return out


def _trees(x: Floats, y: Floats, new: Floats) -> Floats:
    """Boosted trees of modest size."""
    lightgbm = importlib.import_module("lightgbm")
    options = {
        "objective": "regression", "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 20,
        "lambda_l2": 1.0, "num_threads": 1, "deterministic": True, "force_row_wise": True,
        "verbose": -1, "seed": 0,
    }  # fmt: skip
    model = lightgbm.train(options, lightgbm.Dataset(x, y), 300)
    return np.asarray(model.predict(new, num_threads=1), np.float64)
