"""Posterior draws of arms' means when arms resemble each other: smooth in depth, and by segment.

Independent priors make the greatest of several nearly equal means look too great, and with it
everything that is measured against the best arm. Here arms share what they have in common. The log
odds of a conversion are linear in the features ``x`` of an arm (a level, and the depth of its
discount), plus residuals, and segments resemble each other::

    logit θ_sa = x_sa·β_s + τ (√ρ δ_a + √(1-ρ) ε_sa),   β_s ~ N(β_0, Σ),   β_0 ~ N(m, diag M²)

What a conversion earns follows from the offer's terms and one basket size per segment, again with
a slope in depth and residuals; the noise is Gaussian with the observed spread. Rate and value are
drawn independently and multiplied. How large residuals are (τ), and how segments differ (Σ: in
level, in slope, and whether who buys less without a discount reacts more to one), is not assumed:
both are averaged over a grid, weighed by the evidence of the data, with a half-Cauchy prior on τ
and some probability of τ = 0. Where arms do not follow their depth the evidence moves to large τ,
and the model becomes one of arms that only resemble each other; without depths it is that from the
start.

Counts are Laplace-approximated at the joint mode; the Gaussian algebra is exact.

Source: pooled linear models, Hong et al., AISTATS 2022 (HierTS; METHODS section 3); Laplace
approximation and evidence, Rasmussen and Williams (2006) section 3.4; half-Cauchy scales, Gelman,
Bayesian Analysis 1 (2006).

Many depths at equal distances (31 from 0 to 30 %, say) are a ladder. Its residuals are smooth: they
live at a few depths, the knots, as further features that weigh ``max(0, 1 - |depth - knot| /
distance)``, so a depth that was hardly tried learns from its neighbours, and a finer ladder is the
same model.

Letters: ``F`` features (1 or 2, and a ladder's knots), ``G`` points of the grid, else as in
:mod:`bandits.types`.

>>> from bandits import ledger
>>> state = ledger.zeros(segments=1, arms=2)
>>> state = state._replace(trials=state.trials + 1000, conversions=np.array([[100, 110]]))
>>> near = draws("conversion", state, count=2000, seed=0).mean(axis=0)
>>> bool(near[0, 1] - near[0, 0] < 0.006)  # the observed 0.01 is mostly taken for chance
True
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bandits import ledger
from bandits.types import ArmSums

Floats = NDArray[np.float64]

#: Residual scales of the grid, and the median of their half-Cauchy prior where there are any: log
#: odds, and shares of the typical reward per conversion.
RESIDUALS = np.array([0.0, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28])
RESIDUAL_MEDIAN = 0.2
VALUE_RESIDUALS = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.5])
VALUE_RESIDUAL_MEDIAN = 0.1
#: Prior probability of no residuals at all: that depth is all that matters may well be; that arms
#: without an order make no difference whatsoever is rare.
EXACT_LINE, EXACT_LEVEL = 0.5, 0.1
#: Arms are a ladder of depths when there are at least so many, at equal distances; residuals are
#: then smooth: those of so many depths, interpolated in between.
LADDER, KNOTS = 13, 7
#: What stands for no residual at a knot, whose variance must not be 0.
NO_BEND = 1e-4
#: ρ, the part of an arm's residual variance that is the same in every segment.
SHARED = 0.5
COMMON_LEVEL_SD, COMMON_SLOPE_SD = 2.0, 5.0
VALUE_COMMON_LEVEL_SD, VALUE_COMMON_SLOPE_SD = 2.0, 0.5
#: Conversions that the pooled spread of rewards counts for in an arm's.
SPREAD_WEIGHT = 20.0
NEWTON_STEPS = 60
#: After so many steps, points of the grid that are behind the best by so much in log evidence are
#: given up: together they have less than a hundred-millionth of the draws.
SIFT_AFTER, SIFT_BEHIND = 5, 25.0
#: Prior probability that a segment's conversion does not fall with a deeper discount.
RISING = 0.95
#: Draws that are made at once: few enough to stay in a core's cache.
BLOCK = 128


class Offers(NamedTuple):
    """What a conversion earns by the terms of the offers, before any was seen.

    Attributes:
        value: (S, A) at a typical basket, minor units.
        gain: (S, A) how much it changes when the basket grows by its own size.
    """

    value: Floats
    gain: Floats


class Slope(NamedTuple):
    """What is expected of the slope that segments share, before the campaign: a Gaussian.

    Attributes:
        mean: log odds per unit of depth.
        spread: its standard deviation.
    """

    mean: float = 0.0
    spread: float = COMMON_SLOPE_SD


ANY_SLOPE = Slope()


class Between(NamedTuple):
    """How much segments may differ: standard deviations and pivots that the grid combines.

    Attributes:
        level: of the level, log odds (or shares of the typical basket).
        slope: of the slope, per unit of depth (1 = the whole price).
        pivot: where, from the least depth (0) to the greatest (1), level and slope differ
            independently of each other. Segments that buy less without a discount and react more
            to one are most alike at some depth beyond the least: that is their pivot.
    """

    level: tuple[float, ...]
    slope: tuple[float, ...]
    pivot: tuple[float, ...]


RATE_BETWEEN = Between((0.2, 0.6), (0.5, 2.0, 4.0), (0.0, 2 / 3))
VALUE_BETWEEN = Between((0.5,), (0.1, 0.3, 1.0), (0.0,))


class Scales(NamedTuple):
    """Prior scales at each point of the grid.

    Attributes:
        residual: (G,) τ.
        between: (G, F, F) Σ, between segments.
        common: (G, F + A) of what segments share: M, and √ρ τ for every arm; (G, F) for a ladder.
        centre: (F,) m.
        log_prior: (G,) log prior probability of the point.
    """

    residual: Floats
    between: Floats
    common: Floats
    centre: Floats
    log_prior: Floats


class Fitted(NamedTuple):
    """The Gaussian posterior at each point of the grid.

    Attributes:
        log_evidence: (G,) of the Gaussian observations, up to a term that the grid shares.
        mode: (G, S, A) posterior mean.
        shared: (G, F + A) mean of what segments share, (β_0 - m, √ρ τ δ); F wide for a ladder, as
            are the next and cross.
        root: (G, F + A, F + A) root of its covariance.
        own: (G, S, F, F) the covariance of ``β_s - β_0`` given what is shared.
        cross: (G, S, F + A, F) how what is shared would move it.
        pull: (G, S, F) how the observations do.
    """

    log_evidence: Floats
    mode: Floats
    shared: Floats
    root: Floats
    own: Floats
    cross: Floats
    pull: Floats


def features(depth: Floats | None, *, segments: int, arms: int) -> Floats:
    """The (S, A, F) features: a level, the depth where depths differ, the knots of a ladder."""
    level = np.ones((segments, arms, 1))
    if depth is None or np.ptp(depth) <= 1e-9:
        return level
    depth = np.asarray(depth, np.float64)[..., None]
    parts = [level, depth]
    if arms >= LADDER and _even(depth[..., 0]):
        knots = np.linspace(depth.min(), depth.max(), KNOTS)
        parts.append(np.maximum(1.0 - np.abs(depth - knots) / (knots[1] - knots[0]), 0.0))
    return np.concatenate(parts, axis=-1)


def _even(depth: Floats) -> bool:
    """Whether every segment's depths lie at equal distances, but for roundings of a price."""
    step = np.diff(np.sort(depth, axis=1), axis=1)
    return bool(step.min() > 0.5 * step.max())


def draws(
    objective: str,
    state: ArmSums,
    *,
    count: int,
    seed: int,
    depth: Floats | None = None,
    offers: Offers | None = None,
    slope: Slope = ANY_SLOPE,
) -> Floats:
    """Joint posterior draws (M, S, A) of the mean reward per decision, the same for one seed.

    Args:
        objective: "conversion", or one whose reward is earned by conversions: profit, revenue.
        state: a ledger, fields (S, A).
        count: M.
        seed: of the draws.
        depth: (S, A) discount as a share of a typical basket; None, or all equal: arms have no
            order, and are only taken to resemble each other.
        offers: what a conversion earns by the offers' own terms; None for 1 throughout.
        slope: what is expected of the effect of depth; :mod:`bandits.warm_start` has it from
            earlier campaigns.
    """
    sums = ArmSums(*(np.asarray(field) for field in state))
    x = features(depth, segments=sums.trials.shape[0], arms=sums.trials.shape[1])
    rng = np.random.default_rng(seed)
    rate = special.expit(rate_draws(sums, x, rate_scales(sums, x, slope), count, rng))
    if objective == "conversion":
        return np.asarray(rate, np.float64)
    one = np.ones(sums.trials.shape)
    out: Floats = rate * _value_draws(sums, offers or Offers(one, one), depth, count, rng)
    return out


def common_slope(sums: ArmSums, depth: Floats) -> Slope:
    """What a campaign says of the slope that its segments share, over nothing but the usual prior.

    Args:
        sums: a ledger, fields (S, A).
        depth: (S, A) discount as a share of a typical basket.

    Raises:
        ValueError: all depths are equal.
    """
    x = features(depth, segments=sums.trials.shape[0], arms=sums.trials.shape[1])
    if x.shape[-1] == 1:
        raise ValueError("depth: a campaign whose depths are all equal says nothing of a slope")
    *_, fitted, scales = _rate_posterior(sums, x, rate_scales(sums, x, ANY_SLOPE))
    chance = special.softmax(fitted.log_evidence)
    centre = fitted.shared[:, 1] + scales.centre[1]
    mean = float(chance @ centre)
    within = (fitted.root[:, 1] ** 2).sum(axis=-1)
    return Slope(mean, float(np.sqrt(chance @ (within + (centre - mean) ** 2))))


def rate_scales(sums: ArmSums, x: Floats, slope: Slope) -> Scales:
    """The grid of priors of the log odds of a conversion, centred on the overall rate."""
    n = np.maximum(sums.trials, 0)
    centre = np.zeros(x.shape[-1])
    centre[1:2] = slope.mean
    centre[0] = special.logit((np.clip(sums.conversions, 0, n).sum() + 0.5) / (n.sum() + 1.0))
    depth = x[..., 1] if x.shape[-1] > 1 else None
    if depth is not None:
        centre[0] -= slope.mean * np.average(depth, weights=n + 1.0)
    return _scales(
        RESIDUALS, RESIDUAL_MEDIAN, between(RATE_BETWEEN, depth),
        np.array([COMMON_LEVEL_SD, slope.spread])[: x.shape[-1]], centre,
        exact=EXACT_LEVEL if depth is None else EXACT_LINE, arms=x.shape[1],
    )  # fmt: skip


def rate_draws(
    sums: ArmSums, x: Floats, scales: Scales, count: int, rng: np.random.Generator
) -> Floats:
    """Draws (M, S, A) of the log odds of a conversion, given features (S, A, F) and a prior."""
    seen, weight, fitted, scales = _rate_posterior(sums, x, scales)
    return _sample(fitted, seen, weight, x, scales, count, rng, rising=RISING)


def _rate_posterior(
    sums: ArmSums, x: Floats, scales: Scales
) -> tuple[Floats, Floats, Fitted, Scales]:
    """Laplace's approximation at each point of the grid that counts.

    Returns:
        Working observations and weights (G, S, A), the posterior, and the grid's points.
    """
    n = np.maximum(sums.trials, 0).astype(np.float64)
    c = np.clip(sums.conversions, 0, n)
    z = np.broadcast_to(scales.centre[0], (len(scales.residual), *n.shape))
    for step in range(NEWTON_STEPS):
        weight, seen = _working(z, n, c)
        fitted = _solve(seen, weight, x, scales)
        move = np.clip(fitted.mode - z, -2.0, 2.0)
        if step == SIFT_AFTER:
            evidence = _evidence(fitted, z, n, c, weight, seen)
            kept = evidence > evidence.max() - SIFT_BEHIND
            z, move, scales = z[kept], move[kept], _at(scales, kept)
        z = np.clip(z + move, -20.0, 20.0)
        if np.abs(move).max() < 1e-6:
            break
    weight, seen = _working(z, n, c)
    fitted = _solve(seen, weight, x, scales)
    fitted = fitted._replace(log_evidence=_evidence(fitted, z, n, c, weight, seen))
    return seen, weight, fitted, scales


def _evidence(
    fitted: Fitted, z: Floats, n: Floats, c: Floats, weight: Floats, seen: Floats
) -> Floats:
    """Laplace's log evidence (G,) of ``c`` conversions in ``n`` trials, at the mode ``z``."""
    likelihood = c * z - n * np.logaddexp(0.0, z) + 0.5 * weight * (seen - z) ** 2
    out: Floats = fitted.log_evidence + likelihood.sum(axis=(1, 2))
    return out


def _working(z: Floats, n: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Weights and working observations of a Newton step of the binomial likelihood."""
    p = special.expit(z)
    weight = np.maximum(n * p * (1.0 - p), 1e-12)
    return weight, z + np.where(n > 0, (c - n * p) / weight, 0.0)


def _value_draws(
    sums: ArmSums, offer: Offers, depth: Floats | None, count: int, rng: np.random.Generator
) -> Floats:
    c = np.maximum(sums.conversions, 0).astype(np.float64)
    mean = np.where(c > 0, sums.reward / np.maximum(c, 1.0), 0.0)
    unit = max(float(np.abs(offer.gain).max()), float(np.abs(offer.value).max()), 1e-9)
    basis = features(depth, segments=c.shape[0], arms=c.shape[1])
    x, sloped = offer.gain[..., None] / unit * basis, basis.shape[-1] > 1
    spread = np.maximum(ledger.square(sums) - c * mean**2, 0.0)
    scale = np.maximum(np.abs(offer.gain), 0.05 * unit) ** 2
    pooled = ((spread / scale).sum() + 1.0) / (np.maximum(c - 1.0, 0.0).sum() + 1.0)
    free = np.maximum(c - 1.0, 0.0) + SPREAD_WEIGHT
    variance = (spread + SPREAD_WEIGHT * pooled * scale) / free
    weight = np.maximum(c / np.maximum(variance, 1e-6 * unit**2) * unit**2, 1e-12)
    seen = np.where(c > 0, mean - offer.value, 0.0) / unit
    scales = _scales(
        VALUE_RESIDUALS, VALUE_RESIDUAL_MEDIAN, between(VALUE_BETWEEN, depth if sloped else None),
        np.array([VALUE_COMMON_LEVEL_SD, VALUE_COMMON_SLOPE_SD])[: x.shape[-1]],
        np.zeros(x.shape[-1]),
        exact=EXACT_LINE, arms=x.shape[1],
    )  # fmt: skip
    shape = (len(scales.residual), *c.shape)
    seen, weight = np.broadcast_to(seen, shape), np.broadcast_to(weight, shape)
    fitted = _solve(seen, weight, x, scales)
    return offer.value + unit * _sample(fitted, seen, weight, x, scales, count, rng)


def between(spread: Between, depth: Floats | None) -> Floats:
    """Covariances (K, F, F) of level and slope between segments; F is 1 without depths."""
    if depth is None:
        return np.array([[[level**2]] for level in spread.level])
    found = []
    for level, slope, pivot in itertools.product(*spread):
        at = depth.min() + pivot * np.ptp(depth)
        mixed = -at * slope**2
        found.append([[level**2 + (at * slope) ** 2, mixed], [mixed, slope**2]])
    return np.array(found)


def _scales(
    residuals: Floats, median: float, between: Floats, common: Floats, centre: Floats, *,
    exact: float, arms: int,
) -> Scales:  # fmt: skip
    """Every residual with every covariance between segments, all of these as likely beforehand."""
    edges = np.concatenate([[0.0], np.sqrt(residuals[1:-1] * residuals[2:]), [np.inf]])
    slab = np.diff(2.0 / np.pi * np.arctan(edges / median))
    prior = np.concatenate([[exact], (1.0 - exact) * slab])
    tau = np.repeat(residuals, len(between))
    log_prior = np.log(np.repeat(prior, len(between)))
    every, common = np.tile(between, (len(residuals), 1, 1)), np.tile(common, (len(tau), 1))
    knots = len(centre) - common.shape[1]
    if not knots:
        shared = np.repeat(np.sqrt(SHARED) * tau[:, None], arms, axis=1)
        return Scales(tau, every, np.concatenate([common, shared], axis=1), centre, log_prior)
    bend = np.repeat(np.maximum(tau, NO_BEND)[:, None], knots, axis=1)
    own = (1.0 - SHARED) * bend[:, :, None] ** 2 * np.eye(knots)
    every = np.block([[every, np.zeros((*every.shape[:2], knots))],
                      [np.zeros((len(tau), knots, every.shape[2])), own]])  # fmt: skip
    common = np.concatenate([common, np.sqrt(SHARED) * bend], axis=1)
    return Scales(np.zeros_like(tau), every, common, centre, log_prior)


def _at(scales: Scales, points: NDArray[np.bool_]) -> Scales:
    """The grid at some of its points."""
    parts = {name: getattr(scales, name)[points] for name in Scales._fields if name != "centre"}
    return scales._replace(**parts)


def _solve(seen: Floats, weight: Floats, x: Floats, scales: Scales) -> Fitted:
    """The posterior given observations ``seen`` (G, S, A) of precision ``weight``.

    Segments are integrated out first, which leaves what they share, ``b``: β_0 and δ.
    """
    square = (1.0 - SHARED) * (scales.residual**2)[:, None, None]
    q = weight / (1.0 + square * weight)
    off = seen - x @ scales.centre
    gram = (q[..., None, :] * x.swapaxes(1, 2)) @ x
    pull = ((q * off)[..., None, :] @ x)[..., 0, :]
    prior, eye = scales.between[:, None], np.eye(x.shape[-1])
    own: Floats = np.asarray(np.linalg.inv(np.linalg.inv(prior) + gram), np.float64)
    told, cross, heard = gram.sum(axis=1), gram, pull.sum(axis=1)
    if scales.common.shape[1] > x.shape[-1]:
        told, cross = _told(q, gram, x), np.concatenate([gram, q[..., None] * x], axis=2)
        heard = np.concatenate([heard, (q * off).sum(axis=1)], axis=-1)
    moved = cross @ own
    told = told - _beside(moved) @ _beside(cross).swapaxes(1, 2)
    heard = heard - np.einsum("gsbf,gsf->gb", moved, pull)
    size = scales.common
    whole = np.eye(size.shape[1]) + size[:, :, None] * told * size[:, None]
    covariance = size[:, :, None] * np.linalg.inv(whole) * size[:, None]
    shared = (covariance @ heard[..., None])[..., 0]
    root = size[:, :, None] * np.linalg.cholesky(np.linalg.inv(whole))
    evidence = scales.log_prior - 0.5 * (
        np.log1p(square * weight).sum(axis=(1, 2))
        + np.linalg.slogdet(eye + prior @ gram)[1].sum(axis=1)
        + np.linalg.slogdet(whole)[1]
        + (q * off**2).sum(axis=(1, 2))
        - np.einsum("gsf,gsfh,gsh->g", pull, own, pull)
        - np.einsum("gb,gb->g", heard, shared)
    )
    fitted = Fitted(evidence, q * off, shared, root, own, cross, pull)
    return fitted._replace(mode=_mode(fitted, seen, q, square, x, scales.centre))


def _beside(parts: Floats) -> Floats:
    """(G, S, B, F) as (G, B, S · F): segments side by side, for one product over all of them."""
    points, segments, rows, width = parts.shape
    return parts.swapaxes(1, 2).reshape(points, rows, segments * width)


def _told(q: Floats, gram: Floats, x: Floats) -> Floats:
    """``Σ_s Zᵀ diag(q) Z`` for the shared design Z = (x, one column per arm)."""
    mixed = np.einsum("gsa,saf->gfa", q, x)
    alone = q.sum(axis=1)[..., None] * np.eye(q.shape[-1])
    top = np.concatenate([gram.sum(axis=1), mixed], axis=2)
    return np.concatenate([top, np.concatenate([mixed.swapaxes(1, 2), alone], axis=2)], axis=1)


def _mode(
    fitted: Fitted, seen: Floats, q: Floats, square: Floats, x: Floats, centre: Floats
) -> Floats:
    shared, width = fitted.shared, x.shape[-1]
    left = fitted.pull - np.einsum("gsbf,gb->gsf", fitted.cross, shared)
    beta = (fitted.own @ left[..., None])[..., 0] + (shared[:, None, :width] + centre)
    line = np.einsum("saf,gsf->gsa", x, beta) + _arms(shared, width)
    out: Floats = line + square * q * (seen - line)
    return out


def _arms(shared: Floats, width: int) -> Floats:
    """What arms have in common in all segments, (N, 1, A); a ladder's have nothing more: zeros."""
    own = shared[:, None, width:]
    return own if own.shape[-1] else np.zeros((1, 1, 1))


def _sample(
    fitted: Fitted, seen: Floats, weight: Floats, x: Floats, scales: Scales, count: int,
    rng: np.random.Generator, *, rising: float = 0.0,
) -> Floats:  # fmt: skip
    """Draw a point of the grid by its evidence, then from the posterior at that point."""
    chance = np.exp(fitted.log_evidence - fitted.log_evidence.max())
    parts = rng.multinomial(count, chance / chance.sum())
    out, place, done = np.empty((count, *x.shape[:2])), rng.permutation(count), 0
    for g in np.flatnonzero(parts):
        draw = _sampler(fitted, seen, weight, x, scales, int(g), rising)
        end = done + int(parts[g])
        while done < end:
            size = min(BLOCK, end - done)
            out[place[done : done + size]] = draw(size, rng)
            done += size
    return out


def _sampler(
    fitted: Fitted, seen: Floats, weight: Floats, x: Floats, scales: Scales, g: int, rising: float
) -> Callable[[int, np.random.Generator], Floats]:
    """What draws (m, S, A) from the posterior at one point of the grid."""
    own, pull, shared = fitted.own[g], fitted.pull[g], fitted.shared[g]
    segments, _, width = x.shape
    moved = fitted.cross[g].swapaxes(0, 1).reshape(len(shared), -1)
    lines = _rising(own, scales.between[g], rising) if rising and width > 1 else _free(own)
    square = (1.0 - SHARED) * scales.residual[g] ** 2
    kept = 1.0 / (1.0 + square * weight[g])
    heard, spread = seen[g] * (1.0 - kept), np.sqrt(square * kept)

    def draw(count: int, rng: np.random.Generator) -> Floats:
        common = shared + rng.standard_normal((count, len(shared))) @ fitted.root[g].T
        left = pull - (common @ moved).reshape(count, segments, width)
        beta = lines(_applied(own, left), common[:, None, :width] + scales.centre, rng)
        line: Floats = _applied(x, beta) + _arms(common, width)
        if square > 0.0:
            line = line * kept + heard + spread * rng.standard_normal(line.shape)
        return line

    return draw


#: ``(mean (m, S, F) of β_s - β_0, β_0 (m, 1, F), rng) -> β_s (m, S, F)``.
Lines = Callable[[Floats, Floats, np.random.Generator], Floats]


def _free(own: Floats) -> Lines:
    """Draws every segment's line from its Gaussian posterior."""
    root: Floats = np.asarray(np.linalg.cholesky(own), np.float64)

    def lines(mean: Floats, common: Floats, rng: np.random.Generator) -> Floats:
        out: Floats = mean + common + _applied(root, rng.standard_normal(mean.shape))
        return out

    return lines


def _rising(own: Floats, between: Floats, rising: float) -> Lines:
    """The same where a segment's slope is beforehand, with probability ``rising``, not negative.

    The odds that it is so are the prior's times the ratio of what posterior and prior have above
    zero; the slope is then drawn from its truncated Gaussian, and the rest given the slope.
    """
    spread = np.sqrt(own[:, 1, 1])
    others = [f for f in range(own.shape[-1]) if f != 1]
    follow = own[:, others, 1] / own[:, 1, 1, None]
    rest = own[:, others][:, :, others] - follow[:, :, None] * own[:, None, 1, others]
    # A rounding must not make it indefinite.
    size = np.trace(own, axis1=1, axis2=2)[:, None, None]
    root = np.linalg.cholesky(rest + 1e-14 * size * np.eye(len(others)))
    prior = np.sqrt(between[1, 1])

    def lines(mean: Floats, common: Floats, rng: np.random.Generator) -> Floats:
        slope = mean[..., 1] + common[..., 1]
        more = special.log_ndtr(slope / spread) - special.log_ndtr(common[..., 1] / prior)
        odds = special.expit(special.logit(rising) + more)
        u = rng.random(slope.shape)
        rises = rng.random(slope.shape) < odds
        upper = np.where(rises, special.ndtr(slope / spread) * u, u)
        moved = -spread * special.ndtri(np.maximum(upper, 1e-300))
        line = mean + common
        line[..., 1] += moved
        line[..., others] += follow * moved[..., None]
        line[..., others] += _applied(root, rng.standard_normal((*slope.shape, len(others))))
        return line

    return lines


def _applied(matrix: Floats, vectors: Floats) -> Floats:
    """``matrix`` (S, N, F) times each of ``vectors`` (M, S, F): (M, S, N).

    Written out over F, which is small: several times as fast as einsum there.
    """
    out: Floats = matrix[..., 0] * vectors[..., 0, None]
    for f in range(1, vectors.shape[-1]):
        out += matrix[..., f] * vectors[..., f, None]
    return out
