"""Linear arms that share their coefficients: what one arm learns, all arms know.

Arm a has features ``f_a`` (K numbers, such as powers of its discount's depth), and its reward is
``(f_a ⊗ x)·β`` plus noise: one coefficient per pair of an arm's feature and a column of the design,
the same for all arms. Because ``f_a`` is the same in every row of arm a,

    Σ (f_a ⊗ x)(f_a ⊗ x)ᵀ = Σ_a f_a f_aᵀ ⊗ Σ x xᵀ,      Σ r (f_a ⊗ x) = Σ_a f_a ⊗ Σ r x,

so the integer sums of :mod:`bandits.regressors.linear` say all: the state is the same, in every
bit, whether arms share or not. Noise is learnt as there, over one linear arm with K·P columns. The
prior is ``PRECISION``, not the evidence's: a few rows say next to nothing about K·P coefficients,
and whoever follows them tries the shallowest and deepest arms only.

The scores of the arms are correlated: they are linear in the K numbers ``w_k = x·β_k``, which are a
Student t together. Thompson's rule takes them from fixed points of a K-dimensional normal (of
Halton's sequence), the same for every row and every arm: its shares are a
function of belief and context, the same for arms in any order, and linear in the arms.

Source: the linear model with features of arms, Li et al., WWW 2010 (section 3.2, its shared part);
χ² by Wilson and Hilferty, PNAS 1931; the points, Halton, Numerische Mathematik 2 (1960).

Letters: ``K`` features of an arm, ``M`` points, else as in :mod:`bandits.regressors.linear`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bandits.backend import Backend
from bandits.features import ONE
from bandits.regressors import linear
from bandits.regressors.linear import LinearBelief, LinearSums
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import Array, Contexts

#: λ, in units of the noise: coefficients of a third of it are expected.
PRECISION = 10.0
#: Points of the normal that Thompson's rule averages over.
POINTS = 1 << 10


def regressor(
    *,
    arm_features: NDArray[np.float64],
    segments: int,
    features: int,
    space: Backend,
    precision: float = PRECISION,
    spread: float | None = None,
    start: str = "nothing",
) -> Regressor:
    """The regressor; options as of the linear one.

    Args:
        arm_features: (A, K) float64, of sizes about 1; its first column all ones; K at most 7.
        segments: S.
        features: D.
        space: the namespace.
        precision: λ.
        spread: σ; learnt when None.
        start: "nothing" or "mean".
    """
    arms, kinds = arm_features.shape
    plain = linear.regressor(arms=arms, segments=segments, features=features, space=space)
    points = normal_points(kinds + 1)

    def believe(state: LinearSums) -> LinearBelief:
        return linear.posterior(
            pooled(state, arm_features, space), space=space, precision=precision, spread=spread,
            centred=start == "mean",
        )  # fmt: skip

    def predict(belief: LinearBelief, contexts: Contexts) -> Prediction:
        x = linear.design(contexts, segments=segments, space=space) / float(ONE)
        return predicted(belief, x, arm_features, points, space=space)

    return Regressor("linear_shared", plain.init, plain.update, space.jit(believe), predict)


def powers(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features (A, 3) of arms that differ by depth (A,): 1, t and t², t from -1 to 1."""
    low, high = depth.min(), depth.max()
    t = (2.0 * depth - low - high) / (high - low if high > low else 1.0)
    return np.stack([np.ones(len(t)), t, t * t], axis=1)


def normal_points(width: int) -> NDArray[np.float64]:
    """(POINTS, width) points that stand for a standard normal, always the same; at most 8 wide."""
    uniform = np.zeros((POINTS, width))
    for place, base in enumerate((2, 3, 5, 7, 11, 13, 17, 19)[:width]):
        left, digit = np.arange(POINTS), 1.0
        while left.any():
            digit /= base
            uniform[:, place] += digit * (left % base)
            left = left // base
    normal: NDArray[np.float64] = special.ndtri(uniform + 0.5 / POINTS)
    return normal


def pooled(sums: LinearSums, arm_features: NDArray[np.float64], space: Backend) -> LinearSums:
    """The sums of one linear arm over ``f_a ⊗ x``, as float64, in the units of the integers."""
    xp, width = space.xp, arm_features.shape[1] * sums.moment.shape[1]
    f = xp.asarray(arm_features)
    pairs = f[:, :, None] * f[:, None, :]
    gram = xp.einsum("akl,apq->kplq", pairs, xp.asarray(sums.gram) * 1.0)
    moment = xp.einsum("ak,ap->kp", f, xp.asarray(sums.moment) * 1.0)
    trials, conversions, reward, high, low = (xp.asarray(field).sum()[None] for field in sums[:5])
    return LinearSums(
        trials, conversions, reward, high, low,
        gram.reshape(1, width, width), moment.reshape(1, width),
    )  # fmt: skip


def predicted(
    belief: LinearBelief, x: Array, arm_features: NDArray[np.float64],
    points: NDArray[np.float64], *, space: Backend,
) -> Prediction:  # fmt: skip
    """What a belief says of rows x (B, P): means, scales, and M draws of all arms together."""
    xp, kinds = space.xp, arm_features.shape[1]
    f, width = xp.asarray(arm_features), x.shape[1]
    along = xp.matmul(x, xp.asarray(belief.root).reshape(kinds, width, kinds * width))
    covariance = xp.einsum("kbq,lbq->bkl", along, along) * belief.noise**2
    w = x @ xp.asarray(belief.mean).reshape(kinds, width).T
    mean = w @ f.T + belief.offset
    scale = xp.sqrt(xp.maximum(xp.einsum("ak,bkl,al->ba", f, covariance, f), 1e-300))
    # A rounding of the covariance must not make it indefinite.
    size = xp.einsum("bkk->b", covariance)[:, None, None]
    factor = xp.linalg.cholesky(covariance + 1e-13 * size * xp.eye(kinds))
    z = xp.asarray(points)
    ratio = chi_square(z[:, kinds:], belief.freedom, xp)
    moved = xp.einsum("mk,blk->bml", z[:, :kinds] / xp.sqrt(ratio), factor)
    draws = (w[:, None, :] + moved) @ f.T + belief.offset
    return Prediction(mean, scale, xp.full(mean.shape, belief.freedom), draws)


def chi_square(z: Array, freedom: Array, xp: Array) -> Array:
    """χ² over its degrees of freedom, by the normal z that its cube root nearly is."""
    part = 2.0 / (9.0 * freedom)
    return xp.maximum(1.0 - part + xp.sqrt(part) * z, 0.02) ** 3
