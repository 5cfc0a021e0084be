"""What reports need of a posterior: means, spreads, intervals, curves and seeded draws.

The variable is the mean reward of one decision, in integer units (minor money units, or
conversions). The campaign's objective chooses the model, as it chooses the Thompson policy:

* ``conversion``: the conversion rate, Beta.
* ``profit``: Beta conversion rate times the shrunk profit per conversion, taken as known.
* ``revenue``: Student t, from Gaussian rewards with unknown mean and variance.

>>> import numpy as np
>>> from bandits import ledger
>>> state = ledger.zeros(segments=1, arms=2)
>>> state = state._replace(trials=state.trials + 98, conversions=np.array([[9, 19]]))
>>> known = posterior("conversion", state)
>>> known.mean
array([[0.1, 0.2]])
>>> known.draws(4000, seed=1).mean(axis=0).round(2)
array([[0.1, 0.2]])
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bandits import ledger
from bandits.posteriors import beta as beta_model
from bandits.posteriors import gaussian as gaussian_model
from bandits.types import ArmSums

Floats = NDArray[np.float64]

#: Objectives that :func:`posterior` knows.
OBJECTIVES = ("conversion", "revenue", "profit")


class Prior(NamedTuple):
    """What is assumed before data; each objective reads the fields it needs.

    Attributes:
        alpha: conversions assumed, > 0.
        beta: non-conversions assumed, > 0.
        value: (S, A) profit per conversion in minor units; None for 1.
        value_weight: conversions that ``value`` counts for, > 0.
        mean: reward per decision; None for the segment's own mean over all arms.
        sd: spread of rewards, > 0; None for the segment's own over all arms.
        weight: decisions that ``mean`` counts for, > 0.
        shape: half the decisions that ``sd`` counts for, > 1 (so that variances exist).
    """

    alpha: float = 1.0
    beta: float = 1.0
    value: Floats | None = None
    value_weight: float = 100.0
    mean: float | None = None
    sd: float | None = None
    weight: float = 1.0
    shape: float = 2.0


class ArmPosterior(NamedTuple):
    """The posterior of every (segment, arm)'s mean reward.

    Attributes:
        mean: (S, A) float64.
        sd: (S, A) float64.
        quantile: ``level`` in (0, 1) -> (S, A).
        density: grid (S, P) -> (S, A, P), per unit of reward.
        draws: ``(count, seed=)`` -> (M, S, A), independent over arms, the same for one seed.
    """

    mean: Floats
    sd: Floats
    quantile: Callable[[float], Floats]
    density: Callable[[Floats], Floats]
    draws: Callable[..., Floats]


def posterior(objective: str, state: ArmSums, *, prior: Prior | None = None) -> ArmPosterior:
    """The posterior under the model that goes with ``objective``.

    Args:
        objective: one of :data:`OBJECTIVES`.
        state: a ledger, fields (S, A).
        prior: None for flat: Beta(1, 1), value 1, and the segment's own mean and spread.

    Raises:
        ValueError: the objective is unknown.
    """
    prior = prior or Prior()
    sums = ArmSums(*(np.asarray(field) for field in state))
    if objective == "revenue":
        return _student(sums, prior)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
    return _scaled_beta(sums, prior, scaled=objective == "profit")


def curves(known: ArmPosterior, *, points: int = 61, tail: float = 0.002) -> tuple[Floats, Floats]:
    """Density curves for a picture: grid (S, P) shared by a segment's arms, heights (S, A, P).

    The grid is the union of ``points`` steps over each arm's own range, from its quantile ``tail``
    to ``1 - tail``: a narrow posterior is drawn as smoothly as a wide one. P = A points.
    """
    low, high = known.quantile(tail), known.quantile(1.0 - tail)
    steps = np.linspace(0.0, 1.0, points)
    grid = low[..., None] + (high - low)[..., None] * steps
    grid = np.sort(grid.reshape(len(low), -1), axis=-1)
    return grid, known.density(grid)


def _scaled_beta(sums: ArmSums, prior: Prior, *, scaled: bool) -> ArmPosterior:
    known = beta_model.posterior(np, sums, alpha=prior.alpha, beta=prior.beta)
    a, b = known.a, known.b
    value = np.ones(a.shape)
    if scaled:
        before = np.ones(a.shape) if prior.value is None else np.asarray(prior.value)
        value = beta_model.value_per_conversion(np, sums, prior=before, weight=prior.value_weight)
    size = np.maximum(np.abs(value), 1e-12)

    def quantile(level: float) -> Floats:
        levels = np.where(value < 0, 1.0 - level, level)
        out: Floats = value * special.betaincinv(a, b, levels)
        return out

    def density(grid: Floats) -> Floats:
        x = grid[:, None, :] * np.sign(value)[..., None] / size[..., None]
        inside = (x > 0) & (x < 1)
        x = np.where(inside, x, 0.5)
        log = special.xlogy(a[..., None] - 1, x) + special.xlog1py(b[..., None] - 1, -x)
        log = log - special.betaln(a, b)[..., None] - np.log(size)[..., None]
        return np.where(inside, np.exp(log), 0.0)

    def draws(count: int, *, seed: int) -> Floats:
        return value * np.random.default_rng(seed).beta(a, b, size=(count, *a.shape))

    return ArmPosterior(value * known.mean, size * known.sd, quantile, density, draws)


def _student(sums: ArmSums, prior: Prior) -> ArmPosterior:
    mean, sd = _pooled(sums)
    known = gaussian_model.posterior(
        np,
        sums,
        mean=mean if prior.mean is None else prior.mean,
        sd=sd if prior.sd is None else prior.sd,
        weight=prior.weight,
        shape=prior.shape,
    )
    centre, scale, freedom = known.mean, known.scale, known.freedom

    def quantile(level: float) -> Floats:
        out: Floats = centre + scale * special.stdtrit(freedom, level)
        return out

    def density(grid: Floats) -> Floats:
        nu = freedom[..., None]
        t = (grid[:, None, :] - centre[..., None]) / scale[..., None]
        half = 0.5 * (nu + 1.0)
        log = special.gammaln(half) - special.gammaln(0.5 * nu) - 0.5 * np.log(np.pi * nu)
        out: Floats = np.exp(log - half * np.log1p(t * t / nu)) / scale[..., None]
        return out

    def draws(count: int, *, seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        out: Floats = centre + scale * rng.standard_t(freedom, size=(count, *centre.shape))
        return out

    return ArmPosterior(centre, known.sd, quantile, density, draws)


def _pooled(sums: ArmSums) -> tuple[Floats, Floats]:
    """Mean and standard deviation of a segment's rewards over all arms, (S, 1); sd at least 1."""
    trials = np.maximum(sums.trials.sum(axis=1, keepdims=True), 1)
    mean: Floats = sums.reward.sum(axis=1, keepdims=True) / trials
    squares = ledger.square(sums).sum(axis=1, keepdims=True) / trials
    return mean, np.sqrt(np.maximum(squares - mean**2, 1.0))
