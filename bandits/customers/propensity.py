"""Propensity to buy: the probability of a purchase by customer, item and depth of discount.

Three models of one table of rows (:func:`rows`; depth is the last column): logistic regression with
a ridge, boosted trees (LightGBM fits them, we walk them), and a network (Flax). :func:`fit` tries
the settings of :data:`SETTINGS`, judges them by log loss on customers that a fit has not seen
(folds by customer), calibrates the best one on the same unseen scores (isotonic, or Platt's
sigmoid), and fits it to all rows. What :class:`Quality` reports of the calibrated model was
calibrated on the other folds. :func:`predict` is numpy for all three.

Where discounts were targeted, depth stands for who got it: give ``weight`` the inverse of the
logged propensity, and the model is of what depth does. ``rising`` keeps a prediction from falling
with depth.

The name is the marketer's. The probability that a decision was drawn with is a propensity, too, in
the literature on bandits, and everywhere else in Barter.

Source: Friedman, Annals of Statistics 29 (2001); Platt, "Probabilistic outputs for support vector
machines" (1999); Zadrozny and Elkan, KDD 2002 (isotonic); calibration error: Naeini et al., AAAI
2015.

Letters: ``R`` rows, ``D`` columns, ``G`` trees, ``N`` nodes of a tree, ``U`` units, ``M`` knots.

>>> rng = np.random.default_rng(0)
>>> x = rows(rng.normal(size=(2000, 1)), rng.normal(size=(2000, 1)), rng.choice([0.0, 0.2], 2000))
>>> bought = rng.random(2000) < special.expit(x @ [1.0, -1.0, 5.0] - 2.0)
>>> found = fit(x, bought, customer=np.arange(2000) // 4, model="logistic", seed=0)
>>> predict(found.model, rows(np.ones((2, 1)), np.zeros((2, 1)), np.array([0.0, 0.2]))).round(1)
array([0.3, 0.5])
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from bandits.customers.folds import by_cluster
from bandits.regressors.trees import library

Floats = NDArray[np.float64]
Setting = Mapping[str, float]

#: What is tried for each model.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "logistic": tuple({"penalty": penalty} for penalty in (0.1, 1.0, 10.0, 100.0)),
    "trees": tuple({"trees": t, "leaves": n} for t in (60, 200) for n in (4, 15)),
    "neural": tuple({"units": u, "decay": d} for u in (16, 64) for d in (1e-3, 1e-1)),
}
#: Rows of a leaf, at least; depth of a tree, at most; how much each tree corrects those before it.
LEAF_ROWS, DEPTH, RATE = 20, 8, 0.05
#: Rows times trees that are walked at once.
WALKED = 1 << 14
#: Bins of the table of reliability, equally filled.
BINS = 10
#: Scores are kept within what a float64 can tell from 0 and 1.
FARTHEST = 30.0


class Calibration(NamedTuple):
    """What makes a chance of a score; the last fields of every model.

    Attributes:
        sigmoid: (2,) chance = expit(sigmoid[0] + sigmoid[1] · score), where there are no knots.
        score: (M,) knots, ascending, of an isotonic calibration; between them it is linear.
        chance: (M,) what it says there.
    """

    sigmoid: Floats = np.array([0.0, 1.0])
    score: Floats = np.zeros(0)
    chance: Floats = np.zeros(0)


class Logistic(NamedTuple):
    """Logistic regression; last as in :class:`Calibration`.

    Attributes:
        weight: (D + 1,) the level, and what a unit of each column adds to the log odds.
        sigmoid: (2,).
        score: (M,).
        chance: (M,).
    """

    weight: Floats
    sigmoid: Floats
    score: Floats
    chance: Floats


class Trees(NamedTuple):
    """Boosted trees; last as in :class:`Calibration`.

    Attributes:
        feature: (G, N) int32, the column that a node compares; -1 at leaves.
        threshold: (G, N), ``x <= threshold`` goes left.
        left: (G, N) int32, the node on the left; a leaf's is itself.
        right: (G, N) int32.
        value: (G, N) what a leaf adds to the log odds.
        sigmoid: (2,).
        score: (M,).
        chance: (M,).
    """

    feature: NDArray[np.int32]
    threshold: Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: Floats
    sigmoid: Floats
    score: Floats
    chance: Floats


class Network(NamedTuple):
    """Two layers of rectified units; last as in :class:`Calibration`.

    Attributes:
        centre: (D,) mean of the columns.
        scale: (D,) their standard deviations.
        one: (D + 1, U) the first layer, its level first.
        two: (U + 1, U) the second.
        last: (U + 1,) the log odds.
        sigmoid: (2,).
        score: (M,).
        chance: (M,).
    """

    centre: Floats
    scale: Floats
    one: Floats
    two: Floats
    last: Floats
    sigmoid: Floats
    score: Floats
    chance: Floats


Model = Logistic | Trees | Network


def _empty(*shapes: tuple[int, ...]) -> tuple[Floats, ...]:
    return tuple(np.zeros(shape) for shape in (*shapes, 2, 0, 0))


#: Models of no size: what ``artefact.from_bytes`` is told to expect.
EMPTY: dict[str, Model] = {
    "logistic": Logistic(*_empty((0,))),
    "trees": Trees(
        np.zeros((0, 0), np.int32), np.zeros((0, 0)), np.zeros((0, 0), np.int32),
        np.zeros((0, 0), np.int32), *_empty((0, 0)),
    ),
    "neural": Network(*_empty((0,), (0,), (0, 0), (0, 0), (0,))),
}  # fmt: skip


class Quality(NamedTuple):
    """How well chances predict, on customers that were not fitted to.

    Attributes:
        log_loss: mean, natural logarithm; less is better.
        base_loss: that of predicting everybody's rate.
        brier: mean squared error.
        auc: probability that a buyer's chance is above a non-buyer's.
        calibration_error: how far a bin's mean chance is from its share of buyers, mean over rows.
        predicted: (BINS,) mean chance of each bin: the table of reliability.
        observed: (BINS,) share of buyers.
        rows: (BINS,) their number (or weight).
    """

    log_loss: float
    base_loss: float
    brier: float
    auc: float
    calibration_error: float
    predicted: Floats
    observed: Floats
    rows: Floats


class Found(NamedTuple):
    """A fitted model, and what it was chosen by.

    Attributes:
        model: to :func:`predict` with; :mod:`bandits.artefact` stores it.
        quality: calibrated.
        before: the same without calibration.
        setting: the one that was best.
        tried: log loss of each setting, not calibrated.
    """

    model: Model
    quality: Quality
    before: Quality
    setting: Setting
    tried: tuple[tuple[Setting, float], ...]


#: ``(x, bought, weight, setting, rising, seed) -> model``, not calibrated.
Fit = Callable[[Floats, Floats, Floats, Setting, bool, int], Model]


def rows(customer: Floats, item: Floats, depth: Floats) -> Floats:
    """The table (R, D): a customer's columns (R, F), an item's (R, G), and the depth (R,) last."""
    parts = [np.asarray(customer), np.asarray(item), np.asarray(depth)[:, None]]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def fit(
    x: Floats, bought: NDArray[Any], *, customer: NDArray[Any], seed: int,
    model: Literal["logistic", "trees", "neural"] = "trees", rising: bool = False,
    calibration: Literal["isotonic", "sigmoid"] = "isotonic", weight: Floats | None = None,
    folds: int = 5, settings: tuple[Setting, ...] | None = None,
) -> Found:  # fmt: skip
    """The model of a kind that predicts best for customers it has not seen.

    Args:
        x: (R, D) of :func:`rows`.
        bought: (R,) 0 or 1.
        customer: (R,) whose row it is: all of a customer's rows are in one fold.
        seed: of folds and fits.
        model: which kind. Trees need LightGBM.
        rising: a prediction must not fall with the last column; not for networks.
        calibration: isotonic needs some hundred buyers, a sigmoid a few.
        weight: (R,) of the rows, at least 0.
        folds: of the cross-validation.
        settings: to try instead of :data:`SETTINGS`.

    Raises:
        ValueError: shapes disagree, a number is not finite, nobody or everybody bought, a network
            is to rise, or there are fewer customers than folds.
        RuntimeError: LightGBM cannot be imported.
    """
    x, y, w = _checked(x, bought, weight)
    if rising and model == "neural":
        raise ValueError("rising: a network cannot promise it; take trees or logistic")
    one, tries = _FITS[model], settings or SETTINGS[model]
    fold = by_cluster(customer, folds, seed=seed)
    scores = [_unseen(one, x, y, w, fold, setting, rising, seed) for setting in tries]
    losses = [_loss(special.expit(score), y, w) for score in scores]
    best = int(np.argmin(losses))
    calibrated = _calibrated_unseen(scores[best], y, w, fold, calibration)
    final = one(x, y, w, tries[best], rising, seed)
    sigmoid, score, chance = _calibration(scores[best], y, w, calibration)
    final = final._replace(sigmoid=sigmoid, score=score, chance=chance)
    return Found(
        final, quality(calibrated, y, w), quality(special.expit(scores[best]), y, w), tries[best],
        tuple(zip(tries, losses, strict=True)),
    )  # fmt: skip


def predict(model: Model, x: Floats) -> Floats:
    """The chance of a purchase (R,) in each row of a table (R, D)."""
    score = _score(model, np.asarray(x, np.float64))
    return _chance(Calibration(model.sigmoid, model.score, model.chance), score)


def _chance(calibration: Calibration, score: Floats) -> Floats:
    sigmoid, knots, chance = calibration
    if len(knots):
        return np.interp(score, knots, chance)
    out: Floats = special.expit(sigmoid[0] + sigmoid[1] * score)
    return out


def quality(chance: Floats, bought: Floats, weight: Floats | None = None) -> Quality:
    """How well chances (R,) predict what was bought (R,)."""
    y = np.asarray(bought, np.float64)
    w = np.ones(len(y)) if weight is None else weight
    order = np.argsort(chance, kind="stable")
    place = np.minimum((BINS * (w[order].cumsum() - w[order] / 2) / w.sum()).astype(int), BINS - 1)
    size: Floats = np.bincount(place, w[order], BINS).astype(np.float64)
    predicted, observed = (
        np.bincount(place, (w * v)[order], BINS) / np.maximum(size, 1e-300) for v in (chance, y)
    )
    rate = np.full(len(y), np.average(y, weights=w))
    return Quality(
        _loss(chance, y, w), _loss(rate, y, w), float(np.average((chance - y) ** 2, weights=w)),
        _auc(chance, y, w), float(np.average(np.abs(predicted - observed), weights=size)),
        predicted, observed, size,
    )  # fmt: skip


def _checked(x: Floats, bought: NDArray[Any], weight: Floats | None) -> tuple[Floats, ...]:
    x, y = np.asarray(x, np.float64), np.asarray(bought, np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    if x.ndim != 2 or not len(x) == len(y) == len(w):
        raise ValueError("x must be (R, D), bought and weight (R,)")
    if not all(np.isfinite(part).all() for part in (x, y, w)) or (w < 0).any():
        raise ValueError("x, bought and weight must be finite, weight at least 0")
    if not np.isin(y, (0.0, 1.0)).all() or not 0 < (w * y).sum() < w.sum():
        raise ValueError("bought: must be 0 or 1, and some of each")
    return x, y, w


def _unseen(
    one: Fit, x: Floats, y: Floats, w: Floats, fold: NDArray[np.int64], setting: Setting,
    rising: bool, seed: int,
) -> Floats:  # fmt: skip
    """The score (R,) of each row by the fit to the other folds."""
    out = np.empty(len(y))
    for number in range(int(fold.max()) + 1):
        new = fold == number
        if not 0 < (w * y)[~new].sum() < w[~new].sum():
            raise ValueError("bought: in all folds but one, nobody or everybody bought")
        out[new] = _score(one(x[~new], y[~new], w[~new], setting, rising, seed), x[new])
    return out


def _calibrated_unseen(
    score: Floats, y: Floats, w: Floats, fold: NDArray[np.int64], kind: str
) -> Floats:
    """Chances (R,) calibrated on the other folds."""
    out = np.empty(len(y))
    for number in range(int(fold.max()) + 1):
        new = fold == number
        others = _calibration(score[~new], y[~new], w[~new], kind)
        out[new] = _chance(others, score[new])
    return out


def _calibration(score: Floats, y: Floats, w: Floats, kind: str) -> Calibration:
    """The calibration of some scores (R,)."""
    if kind == "sigmoid":
        # Platt's targets, which keep a few rows from being certain.
        buyers, others = (w * y).sum(), (w * (1 - y)).sum()
        target = np.where(y > 0, (buyers + 1) / (buyers + 2), 1 / (others + 2))
        sigmoid = _newton(np.column_stack([np.ones(len(y)), score]), target, w, np.zeros(2))
        return Calibration(np.maximum(sigmoid, [-np.inf, 0.0]))
    rate = np.average(y, weights=w)
    order = np.argsort(score, kind="stable")
    level, first = np.unique(score[order], return_index=True)
    size = np.add.reduceat(w[order], first)
    mean = np.add.reduceat((w * y)[order], first) / np.maximum(size, 1e-300)
    steps = optimize.isotonic_regression(mean, weights=np.maximum(size, 1e-300))
    # Half a row more, at everybody's rate, keeps a block of a few rows from being certain.
    block = np.repeat(np.add.reduceat(size, steps.blocks[:-1]), np.diff(steps.blocks))
    fitted = np.maximum.accumulate((steps.x * block + 0.5 * rate) / (block + 0.5))
    ends = np.unique(np.concatenate([steps.blocks[:-1], steps.blocks[1:] - 1]))
    return Calibration(score=level[ends], chance=fitted[ends])


def _loss(chance: Floats, y: Floats, w: Floats) -> float:
    sure = np.clip(chance, 1e-12, 1 - 1e-12)
    each = special.xlogy(y, sure) + special.xlogy(1 - y, 1 - sure)
    return -float(np.average(each, weights=w))


def _auc(chance: Floats, y: Floats, w: Floats) -> float:
    code = np.unique(chance, return_inverse=True)[1].reshape(-1)
    buyers, others = np.bincount(code, w * y), np.bincount(code, w * (1 - y))
    below = others.cumsum() - others / 2
    return float(buyers @ below / (buyers.sum() * others.sum()))


def _score(model: Model, x: Floats) -> Floats:
    """The log odds (R,), not calibrated."""
    if isinstance(model, Logistic):
        score = model.weight[0] + x @ model.weight[1:]
    elif isinstance(model, Trees):
        score = _walked(model, x)
    else:
        z = (x - model.centre) / model.scale
        for layer in (model.one, model.two):
            z = np.maximum(layer[0] + z @ layer[1:], 0.0)
        score = model.last[0] + z @ model.last[1:]
    out: Floats = np.clip(score, -FARTHEST, FARTHEST)
    return out


def _walked(model: Trees, x: Floats) -> Floats:
    """The sum of the leaves (R,) that each row comes to; rows in blocks that fit the cache."""
    trees, nodes = model.feature.shape
    first = np.arange(trees) * nodes
    feature, threshold = np.maximum(model.feature, 0).ravel(), model.threshold.ravel()
    left, right = ((side + first[:, None]).ravel() for side in (model.left, model.right))
    out, size = np.empty(len(x)), max(1, WALKED // max(trees, 1))
    for start in range(0, len(x), size):
        part = np.ascontiguousarray(x[start : start + size])
        row = np.arange(len(part))[:, None] * x.shape[1]
        at = np.broadcast_to(first, (len(part), trees))
        for _ in range(min(DEPTH, nodes // 2)):  # no deeper than leaves less one
            seen = part.ravel().take(row + feature.take(at))
            at = np.where(seen <= threshold.take(at), left.take(at), right.take(at))
        out[start : start + size] = model.value.ravel().take(at).sum(axis=1)
    return out


def _fit_logistic(
    x: Floats, y: Floats, w: Floats, setting: Setting, rising: bool, seed: int
) -> Logistic:
    """The ridge is on standardised columns; the level is free of it."""
    centre, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-12, spread, np.inf)
    z = np.column_stack([np.ones(len(x)), (x - centre) / scale])
    ridge = np.full(z.shape[1], setting["penalty"])
    ridge[0] = 0.0
    weight = _newton(z, y, w, ridge)
    if rising and weight[-1] < 0:  # convex: then the best of those allowed has no slope at all
        weight = np.append(_newton(z[:, :-1], y, w, ridge[:-1]), 0.0)
    slope = weight[1:] / scale
    return Logistic(np.concatenate([[weight[0] - slope @ centre], slope]), *Calibration())


def _newton(z: Floats, y: Floats, w: Floats, ridge: Floats) -> Floats:
    """Coefficients (K,) of greatest penalised likelihood; steps are halved where they overshoot."""

    def loss(at: Floats) -> float:
        score = z @ at
        return float(w @ (np.logaddexp(0.0, score) - y * score) + 0.5 * ridge @ at**2)

    at = np.zeros(z.shape[1])
    height = loss(at)
    for _ in range(100):
        chance = special.expit(z @ at)
        slope = z.T @ (w * (chance - y)) + ridge * at
        bend = z.T @ ((w * chance * (1 - chance))[:, None] * z) + np.diag(ridge)
        step = np.linalg.solve(bend + 1e-9 * np.eye(len(at)), slope)
        while (lower := loss(at - step)) > height and np.abs(step).max() > 1e-10:
            step /= 2
        at, gain, height = at - step, height - lower, lower
        if gain <= 1e-10 * (1.0 + abs(height)):
            break
    return at


def _fit_trees(x: Floats, y: Floats, w: Floats, setting: Setting, rising: bool, seed: int) -> Trees:
    lightgbm = library()
    options = {
        "objective": "binary", "learning_rate": RATE, "num_leaves": int(setting["leaves"]),
        "max_depth": DEPTH, "min_data_in_leaf": LEAF_ROWS, "lambda_l2": 1.0, "num_threads": 1,
        "deterministic": True, "force_row_wise": True, "verbose": -1, "seed": seed % (1 << 31),
        "monotone_constraints": [0] * (x.shape[1] - 1) + [int(rising)],
        "monotone_constraints_method": "intermediate",
    }  # fmt: skip
    model = lightgbm.train(options, lightgbm.Dataset(x, y, weight=w), int(setting["trees"]))
    grown = model.dump_model()["tree_info"]
    nodes = 2 * int(setting["leaves"]) - 1
    parts = [_nodes(one["tree_structure"], nodes) for one in grown]
    feature, threshold, left, right, value = map(np.stack, zip(*parts, strict=True))
    return Trees(feature, threshold, left, right, value, *Calibration())


def _nodes(root: dict[str, Any], count: int) -> tuple[NDArray[Any], ...]:
    """LightGBM's nested nodes as feature, threshold, left, right and value (N,), the root first."""
    left = np.arange(count, dtype=np.int32)
    feature, right = np.full(count, -1, np.int32), left.copy()
    threshold, value = np.zeros(count), np.zeros(count)
    waiting, free = [(root, 0)], 1
    while waiting:
        node, place = waiting.pop()
        if "split_feature" in node:
            feature[place], threshold[place] = node["split_feature"], node["threshold"]
            left[place], right[place] = free, free + 1
            waiting += [(node["left_child"], free), (node["right_child"], free + 1)]
            free += 2
        else:
            value[place] = node["leaf_value"]
    return feature, threshold, left, right, value


def _fit_network(
    x: Floats, y: Floats, w: Floats, setting: Setting, rising: bool, seed: int
) -> Network:
    centre, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0)
    train = importlib.import_module("bandits.customers.propensity_network").layers
    one, two, last = train((x - centre) / scale, y, w / w.mean(), seed=seed, **setting)
    return Network(centre, scale, one, two, last, *Calibration())


_FITS: dict[str, Fit] = {"logistic": _fit_logistic, "trees": _fit_trees, "neural": _fit_network}
