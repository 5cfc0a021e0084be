"""Posterior draws of arms' means when arms resemble each other: smooth in depth, and by segment.

Independent priors make the greatest of several nearly equal means look too great, and with it
everything that is measured against the best arm. Here arms share what they have in common. The log
odds of a conversion are linear in the features ``x`` of an arm (a level, and the depth of its
discount), plus residuals, and segments resemble each other::

    logit θ_sa = x_sa·β_s + τ (√ρ δ_a + √(1-ρ) ε_sa),   β_s ~ N(β_0, diag σ²),  β_0 ~ N(m, diag M²)

What a conversion earns follows from the offer's terms and one basket size per segment, again with
a slope in depth and residuals; the noise is Gaussian with the observed spread. Rate and value are
drawn independently and multiplied. How large residuals are (τ), and how much slopes differ (σ), is
not assumed: both are averaged over a grid, weighed by the evidence of the data, with a half-Cauchy
prior on τ and some probability of τ = 0. Where arms do not follow their depth the evidence moves
to large τ, and the model becomes one of arms that only resemble each other; without depths it is
that from the start.

Counts are Laplace-approximated at the joint mode; the Gaussian algebra is exact.

Source: pooled linear models, Hong et al., AISTATS 2022 (HierTS; METHODS section 3); Laplace
approximation and evidence, Rasmussen and Williams (2006) section 3.4; half-Cauchy scales, Gelman,
Bayesian Analysis 1 (2006).

Letters: ``F`` features (1 or 2), ``G`` points of the grid, else as in :mod:`bandits.types`.

>>> from bandits import ledger
>>> state = ledger.zeros(segments=1, arms=2)
>>> state = state._replace(trials=state.trials + 1000, conversions=np.array([[100, 110]]))
>>> near = draws("conversion", state, count=2000, seed=0).mean(axis=0)
>>> bool(near[0, 1] - near[0, 0] < 0.006)  # the observed 0.01 is mostly taken for chance
True
"""

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
#: ρ, the part of an arm's residual variance that is the same in every segment.
SHARED = 0.5
#: How much slopes differ between segments: log odds per unit of depth (1 = the whole price).
SLOPES = np.array([0.5, 1.5, 4.0])
LEVEL_SD, COMMON_LEVEL_SD, COMMON_SLOPE_SD = 1.0, 2.0, 5.0
#: The same for baskets, as shares of the typical one.
VALUE_SLOPES = np.array([0.1, 0.3, 1.0])
VALUE_LEVEL_SD, VALUE_COMMON_LEVEL_SD, VALUE_COMMON_SLOPE_SD = 0.5, 2.0, 0.5
#: Conversions that the pooled spread of rewards counts for in an arm's.
SPREAD_WEIGHT = 20.0
NEWTON_STEPS = 60


class Offers(NamedTuple):
    """What a conversion earns by the terms of the offers, before any was seen.

    Attributes:
        value: (S, A) at a typical basket, minor units.
        gain: (S, A) how much it changes when the basket grows by its own size.
    """

    value: Floats
    gain: Floats


class Scales(NamedTuple):
    """Prior scales at each point of the grid.

    Attributes:
        residual: (G,) τ.
        between: (G, F) σ, between segments.
        common: (G, F + A) of what segments share: M, and √ρ τ for every arm.
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
        shared: (G, F + A) mean of what segments share, (β_0 - m, √ρ τ δ).
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
    """The (S, A, F) features: a level, and the depth where depths differ at all."""
    level = np.ones((segments, arms, 1))
    if depth is None or np.ptp(depth) <= 1e-9:
        return level
    return np.concatenate([level, np.asarray(depth, np.float64)[..., None]], axis=-1)


def draws(
    objective: str,
    state: ArmSums,
    *,
    count: int,
    seed: int,
    depth: Floats | None = None,
    offers: Offers | None = None,
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
    """
    sums = ArmSums(*(np.asarray(field) for field in state))
    x = features(depth, segments=sums.trials.shape[0], arms=sums.trials.shape[1])
    rng = np.random.default_rng(seed)
    rate = special.expit(_rate_draws(sums, x, count, rng))
    if objective == "conversion":
        return np.asarray(rate, np.float64)
    one = np.ones(sums.trials.shape)
    out: Floats = rate * _value_draws(sums, offers or Offers(one, one), depth, count, rng)
    return out


def _rate_draws(sums: ArmSums, x: Floats, count: int, rng: np.random.Generator) -> Floats:
    n = np.maximum(sums.trials, 0).astype(np.float64)
    c = np.clip(sums.conversions, 0, n)
    centre = np.zeros(x.shape[-1])
    centre[0] = special.logit((c.sum() + 0.5) / (n.sum() + 1.0))
    scales = _scales(
        RESIDUALS, RESIDUAL_MEDIAN, SLOPES, LEVEL_SD,
        np.array([COMMON_LEVEL_SD, COMMON_SLOPE_SD])[: x.shape[-1]], centre,
        exact=EXACT_LINE if x.shape[-1] > 1 else EXACT_LEVEL, arms=x.shape[1],
    )  # fmt: skip
    z = np.broadcast_to(centre[0], (len(scales.residual), *n.shape)).copy()
    for _ in range(NEWTON_STEPS):
        weight, seen = _working(z, n, c)
        fitted = _solve(seen, weight, x, scales)
        step = np.clip(fitted.mode - z, -2.0, 2.0)
        z = np.clip(z + step, -20.0, 20.0)
        if np.abs(step).max() < 1e-6:
            break
    weight, seen = _working(z, n, c)
    fitted = _solve(seen, weight, x, scales)
    likelihood = (c * z - n * np.logaddexp(0.0, z) + 0.5 * weight * (seen - z) ** 2).sum((1, 2))
    evidence = fitted.log_evidence + likelihood
    return _sample(fitted._replace(log_evidence=evidence), seen, weight, x, scales, count, rng)


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
    x = offer.gain[..., None] / unit
    if depth is not None and np.ptp(depth) > 1e-9:
        x = np.concatenate([x, x * depth[..., None]], axis=-1)
    spread = np.maximum(ledger.square(sums) - c * mean**2, 0.0)
    scale = np.maximum(np.abs(offer.gain), 0.05 * unit) ** 2
    pooled = ((spread / scale).sum() + 1.0) / (np.maximum(c - 1.0, 0.0).sum() + 1.0)
    free = np.maximum(c - 1.0, 0.0) + SPREAD_WEIGHT
    variance = (spread + SPREAD_WEIGHT * pooled * scale) / free
    weight = np.maximum(c / np.maximum(variance, 1e-6 * unit**2) * unit**2, 1e-12)
    seen = np.where(c > 0, mean - offer.value, 0.0) / unit
    scales = _scales(
        VALUE_RESIDUALS, VALUE_RESIDUAL_MEDIAN, VALUE_SLOPES, VALUE_LEVEL_SD,
        np.array([VALUE_COMMON_LEVEL_SD, VALUE_COMMON_SLOPE_SD])[: x.shape[-1]],
        np.zeros(x.shape[-1]),
        exact=EXACT_LINE, arms=x.shape[1],
    )  # fmt: skip
    shape = (len(scales.residual), *c.shape)
    seen, weight = np.broadcast_to(seen, shape), np.broadcast_to(weight, shape)
    fitted = _solve(seen, weight, x, scales)
    return offer.value + unit * _sample(fitted, seen, weight, x, scales, count, rng)


def _scales(
    residuals: Floats, median: float, slopes: Floats, level: float, common: Floats,
    centre: Floats, *, exact: float, arms: int,
) -> Scales:  # fmt: skip
    """Every residual with every slope scale; slope scales are equally likely beforehand."""
    slopes = slopes if len(centre) > 1 else slopes[:1]
    edges = np.concatenate([[0.0], np.sqrt(residuals[1:-1] * residuals[2:]), [np.inf]])
    slab = np.diff(2.0 / np.pi * np.arctan(edges / median))
    prior = np.concatenate([[exact], (1.0 - exact) * slab])
    tau, slope = (axis.ravel() for axis in np.meshgrid(residuals, slopes, indexing="ij"))
    between = np.stack([np.full(tau.shape, level), slope], axis=-1)[:, : len(centre)]
    shared = np.repeat(np.sqrt(SHARED) * tau[:, None], arms, axis=1)
    common = np.concatenate([np.tile(common, (len(tau), 1)), shared], axis=1)
    return Scales(tau, between, common, centre, np.log(np.repeat(prior / len(slopes), len(slopes))))


def _solve(seen: Floats, weight: Floats, x: Floats, scales: Scales) -> Fitted:
    """The posterior given observations ``seen`` (G, S, A) of precision ``weight``.

    Segments are integrated out first, which leaves what they share, ``b``: β_0 and δ.
    """
    square = (1.0 - SHARED) * (scales.residual**2)[:, None, None]
    q = weight / (1.0 + square * weight)
    off = seen - x @ scales.centre
    gram = np.einsum("gsa,saf,sah->gsfh", q, x, x)
    pull = np.einsum("gsa,saf->gsf", q * off, x)
    between = scales.between[:, None] ** 2
    eye = np.eye(x.shape[-1])
    own = np.linalg.inv(eye / between[..., None] + gram)
    cross = np.concatenate([gram, q[..., None] * x], axis=2)
    told = _told(q, gram, x) - np.einsum("gsbf,gsfh,gsch->gbc", cross, own, cross)
    heard = np.concatenate([pull.sum(axis=1), (q * off).sum(axis=1)], axis=-1)
    heard = heard - np.einsum("gsbf,gsfh,gsh->gb", cross, own, pull)
    size = scales.common
    whole = np.eye(size.shape[1]) + size[:, :, None] * told * size[:, None]
    covariance = size[:, :, None] * np.linalg.inv(whole) * size[:, None]
    shared = (covariance @ heard[..., None])[..., 0]
    root = size[:, :, None] * np.linalg.cholesky(np.linalg.inv(whole))
    evidence = scales.log_prior - 0.5 * (
        np.log1p(square * weight).sum(axis=(1, 2))
        + np.linalg.slogdet(eye + between[..., None] * gram)[1].sum(axis=1)
        + np.linalg.slogdet(whole)[1]
        + (q * off**2).sum(axis=(1, 2))
        - np.einsum("gsf,gsfh,gsh->g", pull, own, pull)
        - np.einsum("gb,gb->g", heard, shared)
    )
    fitted = Fitted(evidence, q * off, shared, root, own, cross, pull)
    return fitted._replace(mode=_mode(fitted, seen, q, square, x, scales.centre))


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
    line = np.einsum("saf,gsf->gsa", x, beta) + shared[:, None, width:]
    out: Floats = line + square * q * (seen - line)
    return out


def _sample(
    fitted: Fitted, seen: Floats, weight: Floats, x: Floats, scales: Scales, count: int,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    """Draw a point of the grid by its evidence, then from the posterior at that point."""
    chance = np.exp(fitted.log_evidence - fitted.log_evidence.max())
    parts = rng.multinomial(count, chance / chance.sum())
    width, out = x.shape[-1], []
    for g in np.flatnonzero(parts):
        size = (int(parts[g]), *x.shape[:2])
        noise = rng.normal(size=(size[0], fitted.shared.shape[1]))
        shared = fitted.shared[g] + noise @ fitted.root[g].T
        moved: Floats = np.tensordot(shared, fitted.cross[g], axes=(1, 1))
        root = np.linalg.cholesky(fitted.own[g])
        noise = rng.normal(size=moved.shape)
        beta = _applied(fitted.own[g], fitted.pull[g] - moved) + _applied(root, noise)
        beta += shared[:, None, :width] + scales.centre
        line = _applied(x, beta) + shared[:, None, width:]
        square = (1.0 - SHARED) * scales.residual[g] ** 2
        kept = 1.0 / (1.0 + square * weight[g])
        spread = np.sqrt(square * kept)
        out.append(line * kept + seen[g] * (1.0 - kept) + spread * rng.normal(size=size))
    drawn: Floats = np.concatenate(out)
    return drawn[rng.permutation(count)]


def _applied(matrix: Floats, vectors: Floats) -> Floats:
    """``matrix`` (S, N, F) times each of ``vectors`` (M, S, F): (M, S, N).

    Written out over F, which is 1 or 2: several times as fast as einsum there.
    """
    out: Floats = matrix[..., 0] * vectors[..., 0, None]
    for f in range(1, vectors.shape[-1]):
        out += matrix[..., f] * vectors[..., f, None]
    return out
