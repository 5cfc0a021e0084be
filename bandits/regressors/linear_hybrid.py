"""Linear arms with a part that all share and a part of their own: hybrid arms.

Arm a with features ``f_a`` (K numbers, as in :mod:`bandits.regressors.linear_shared`) earns
``(f_a ⊗ x)·β + x·θ_a`` plus noise: what depth does to everybody, and by how much this arm departs
from that. The state is again the integer sums of :mod:`bandits.regressors.linear`. With
``G_a = Σ x xᵀ``, ``m_a = Σ r x`` and ``M_a = (G_a + λ)⁻¹``, integrating θ_a out leaves a regression
for β alone, whose sums are ``Σ_a f_a f_aᵀ ⊗ (G_a - G_a M_a G_a)`` and ``Σ_a f_a ⊗ λ M_a m_a``. An
arm then earns ``x·c_a`` with ``c_a = M_a m_a + λ M_a (f_a ⊗ ·)β``, and M_a is how uncertain its own
part leaves it.

Own coefficients have the prior ``N(0, σ²/λ)``, and the evidence chooses λ over a grid: a great one
makes shared arms, a small one disjoint arms. Shared coefficients have the shared arms' precision.

Scores are correlated through β. Thompson's rule takes their joint Student t from fixed points (of
Sobol's sequence), one coordinate per arm in the order of depth; arms of one depth are ordered by
their sums, so the order in which a campaign names its arms is nobody's business.

Source: hybrid linear models, Li et al., WWW 2010 (section 3.2); Sobol, USSR Computational
Mathematics 7 (1967).

Letters: ``K`` features of an arm, ``M`` points, else as in :mod:`bandits.regressors.linear`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bandits.backend import Backend
from bandits.features import ONE
from bandits.regressors import linear, linear_shared
from bandits.regressors.linear import (
    NOISE_SHARE,
    NOISE_WEIGHT,
    PRECISIONS,
    LinearBelief,
    LinearSums,
)
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import FEATURE_BITS, Array, Contexts

#: Points of the normal that Thompson's rule averages over.
POINTS = 1 << 10


class HybridBelief(NamedTuple):
    """The posterior of what every arm's coefficients come to.

    Attributes:
        arms: mean (A, P), and root (A, P, K·P + P): the first K·P columns of it are what arms have
            in common, the others their own.
        order: (A,) int, the arms by depth.
    """

    arms: LinearBelief
    order: Array


class Numbers(NamedTuple):
    """The sums in units of the features and rewards: gram (A, P, P), moment (A, P), and scalars.

    ``values`` (A, P) and ``vectors`` (A, P, P) decompose the Gram matrices; ``along`` (A, P) is the
    moment in them.
    """

    gram: Array
    moment: Array
    values: Array
    vectors: Array
    along: Array
    total: Array
    guess: Array
    shape: Array
    offset: Array


def regressor(
    *,
    arm_features: NDArray[np.float64],
    depth: NDArray[np.float64],
    segments: int,
    features: int,
    space: Backend,
    precision: float | None = None,
    spread: float | None = None,
    start: str = "nothing",
) -> Regressor:
    """The regressor; options as of the linear one.

    Args:
        arm_features: (A, K) float64, of sizes about 1; its first column all ones.
        depth: (A,) what arms are ordered by.
        segments: S.
        features: D.
        space: the namespace.
        precision: λ of the arms' own coefficients; the evidence chooses when None.
        spread: σ; learnt when None.
        start: "nothing" or "mean".
    """
    arms = len(arm_features)
    plain = linear.regressor(arms=arms, segments=segments, features=features, space=space)
    points = normal_points(arms + 1)

    def believe(state: LinearSums) -> HybridBelief:
        xp = space.xp
        keys = (state.reward, state.conversions, state.trials, depth)
        order = xp.lexsort(tuple(xp.asarray(key) for key in keys))
        numbers = _numbers(state, space, centred=start == "mean")
        return HybridBelief(_posterior(numbers, arm_features, precision, spread, space), order)

    def predict(belief: HybridBelief, contexts: Contexts) -> Prediction:
        x = linear.design(contexts, segments=segments, space=space) / float(ONE)
        found = linear.predicted(belief.arms, x, space=space)
        return found._replace(draws=_draws(belief, found, x, points, space))

    return Regressor("linear_hybrid", plain.init, plain.update, space.jit(believe), predict)


def normal_points(width: int) -> NDArray[np.float64]:
    """(POINTS, width) points that stand for a standard normal, always the same."""
    # A second's import, which serving processes of other campaigns never need.
    from scipy.stats import qmc

    uniform = qmc.Sobol(width, scramble=False).random(POINTS)
    normal: NDArray[np.float64] = special.ndtri(uniform + 0.5 / POINTS)
    return normal


def _numbers(sums: LinearSums, space: Backend, *, centred: bool) -> Numbers:
    xp = space.xp
    trials, reward = xp.asarray(sums.trials) * 1.0, xp.asarray(sums.reward) * 1.0
    square = xp.asarray(sums.square_high) * 2.0**32 + xp.asarray(sums.square_low)
    rows = trials.sum()
    mean = reward.sum() / xp.maximum(rows, 1.0)
    offset = mean if centred else mean * 0.0
    gram = xp.asarray(sums.gram) / 2.0 ** (2 * FEATURE_BITS)
    moment = xp.asarray(sums.moment) / 2.0**FEATURE_BITS - offset * gram[:, 0, :]
    values, vectors = xp.linalg.eigh(gram)
    return Numbers(
        gram, moment, xp.maximum(values, 0.0), vectors, xp.einsum("apq,ap->aq", vectors, moment),
        (square - 2.0 * offset * reward + offset**2 * trials).sum(),
        0.5 * NOISE_WEIGHT * NOISE_SHARE * linear.variance(square.sum(), mean, rows, xp),
        0.5 * (NOISE_WEIGHT + rows), offset,
    )  # fmt: skip


def _common(numbers: Numbers, f: Array, own: Array, xp: Array) -> tuple[Array, Array]:
    """What is told of β: its precision (K·P, K·P) in units of 1/σ², and its moment (K·P,).

    ``own`` is λ; G - G M G is ``λ G (G + λ)⁻¹``.
    """
    kept = own / (numbers.values + own)
    shrunk = xp.einsum("apq,aq,arq->apr", numbers.vectors, numbers.values * kept, numbers.vectors)
    pull = xp.einsum("apq,aq->ap", numbers.vectors, kept * numbers.along)
    size = f.shape[1] * pull.shape[1]
    told = xp.einsum("akl,apq->kplq", f[:, :, None] * f[:, None, :], shrunk).reshape(size, size)
    return (
        told + linear_shared.PRECISION * xp.eye(size), xp.einsum("ak,ap->kp", f, pull).reshape(size)
    )  # fmt: skip


def _left(numbers: Numbers, told: Array, pull: Array, own: Array, xp: Array) -> Array:
    """Squares of the rewards that neither part explains."""
    explained = (numbers.along**2 / (numbers.values + own)).sum()
    explained = explained + pull @ xp.linalg.solve(told, pull)
    return xp.maximum(numbers.total - explained, 0.0)


def _evidence(numbers: Numbers, f: Array, own: Array, xp: Array) -> Array:
    """Log evidence of λ, up to a term that all λ share."""
    told, pull = _common(numbers, f, own, xp)
    spent = 0.5 * (xp.log(own) - xp.log(numbers.values + own)).sum()
    spent = spent - 0.5 * xp.linalg.slogdet(told)[1]
    left = _left(numbers, told, pull, own, xp)
    return spent - numbers.shape * xp.log(numbers.guess + 0.5 * left)


def _posterior(
    numbers: Numbers, arm_features: NDArray[np.float64], precision: float | None,
    spread: float | None, space: Backend,
) -> LinearBelief:  # fmt: skip
    xp = space.xp
    f = xp.asarray(arm_features)
    if precision is None:
        grid = xp.asarray(PRECISIONS)
        found = space.map_rows(lambda one: _evidence(numbers, f, one[0], xp)[None], (grid,), 1)
        own = grid[xp.argmax(found)]
    else:
        own = xp.asarray(float(precision))
    told, pull = _common(numbers, f, own, xp)
    factor = xp.linalg.cholesky(told)
    common = xp.linalg.inv(factor).T
    kinds = f.shape[1]
    alone = numbers.vectors / xp.sqrt(numbers.values + own)[:, None, :]
    # λ M_a (f_a ⊗ ·) as a matrix, times a root of β's covariance: what arms have in common.
    through = own * xp.einsum("apq,arq->apr", alone, alone)
    wide = xp.einsum("apr,ak,krz->apz", through, f, common.reshape(kinds, -1, common.shape[1]))
    mean = xp.einsum("apq,aq->ap", numbers.vectors, numbers.along / (numbers.values + own))
    mean = mean + wide @ (common.T @ pull)
    left = _left(numbers, told, pull, own, xp)
    noise = xp.sqrt((numbers.guess + 0.5 * left) / numbers.shape)
    known = spread is not None
    return LinearBelief(
        linear.arms_last(mean, space=space),
        linear.arms_last(xp.concatenate([wide, alone], axis=2), space=space),
        xp.asarray(float(spread)) if known else noise,  # type: ignore[arg-type]
        xp.asarray(np.inf) if known else 2.0 * numbers.shape,
        numbers.offset,
        own,
    )


def _draws(
    belief: HybridBelief, found: Prediction, x: Array, points: NDArray[np.float64], space: Backend
) -> Array:
    """Joint draws (B, M, A) of all arms' scores."""
    xp, arms = space.xp, found.mean.shape[1]
    width = belief.arms.root.shape[2] - x.shape[1]
    order = xp.asarray(belief.order)
    common = xp.matmul(x, xp.asarray(belief.arms.root)[order, :, :width]) * belief.arms.noise
    covariance = xp.einsum("abq,cbq->bac", common, common)
    variance = found.scale[:, order] ** 2
    diagonal = xp.arange(arms) == xp.arange(arms)[:, None]
    # A rounding of the covariance must not make it indefinite.
    covariance = xp.where(diagonal, variance[:, None, :] * (1.0 + 1e-12), covariance)
    factor = xp.linalg.cholesky(covariance)
    z = xp.asarray(points)
    ratio = linear_shared.chi_square(z[:, arms:], belief.arms.freedom, xp)
    moved = xp.einsum("mk,bak->bma", z[:, :arms] / xp.sqrt(ratio), factor)
    return found.mean[:, None, :] + moved[..., xp.argsort(order)]
