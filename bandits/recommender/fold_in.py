"""A newcomer's vector from a handful of interactions: one least-squares solve, in numpy.

With the items' vectors y fixed, a customer's vector x is a ridge regression of what they did, as in
an alternating fit (Hu, Koren and Volinsky, ICDM 2008). The equations hang on what scores say:

    RATING      (P + n S + Σ z zᵀ) (x, b) = Σ (value - mean - bias_i) z,      z = (y_i, 1)
    PREFERENCE  (P + α Σ v y yᵀ) x = Σ (1 + α v) y,                    P = YᵀY + λ
    RANKING     (P + n S) (x - x̄) = Σ (y_i - centre), one Newton step from the mean customer x̄

Few interactions say little. A RATING model is drawn to its biases and a RANKING model to x̄ by the
prior; the vector of a PREFERENCE model is mixed with x̄, whose scores rank items about as their
popularity does: x = (n solved + s x̄) / (n + s). Items are folded in by the same equations with the
parts exchanged.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.factors import PREFERENCE, RATING, Factors, Floats

#: Interactions that a PREFERENCE model's mean customer, or mean item, counts as.
SHRINK = 1.0


class Folded(NamedTuple):
    """A newcomer.

    Attributes:
        vector: (K,) float32.
        bias: () float32.
    """

    vector: Floats
    bias: Floats


class _Side(NamedTuple):
    """What the equations of a customer, or of an item, are made of."""

    vectors: Floats
    biases: Floats
    mean: Floats
    prior: Floats
    step: Floats
    centre: Floats


def customer(
    model: Factors,
    items: NDArray[np.integer],
    values: NDArray[Any] | None = None,
    *,
    shrink: float = SHRINK,
) -> Folded:
    """A customer who did something with ``items`` (n,); ``values`` (n,) are 1 unless given."""
    side = _Side(
        model.items, model.item_bias, model.user_mean, model.user_prior, model.user_step,
        model.centre,
    )  # fmt: skip
    return _folded(model, side, items, values, shrink)


def item(
    model: Factors,
    users: NDArray[np.integer],
    values: NDArray[Any] | None = None,
    *,
    shrink: float = SHRINK,
) -> Folded:
    """An item that ``users`` (n,) chose. In a RANKING model its bias is the mean item's."""
    side = _Side(
        model.users, model.user_bias, model.item_mean, model.item_prior, model.item_step,
        model.user_mean,
    )  # fmt: skip
    found = _folded(model, side, users, values, shrink)
    if int(model.kind) in (RATING, PREFERENCE):
        return found
    return found._replace(bias=np.asarray(model.item_bias.mean(), np.float32))


def _folded(
    model: Factors, side: _Side, which: NDArray[np.integer], values: NDArray[Any] | None,
    shrink: float,
) -> Folded:  # fmt: skip
    y = side.vectors[which].astype(np.float64)
    n, k = y.shape
    value = np.ones(n) if values is None else np.asarray(values, np.float64)
    if int(model.kind) == RATING:
        z = np.concatenate([y, np.ones((n, 1))], axis=1)
        ridge = np.eye(k + 1) * (side.prior[0, 0] + n * side.step[0, 0] if k else 1.0)
        target = value - model.mean - side.biases[which]
        found = np.linalg.solve(ridge + z.T @ z, z.T @ target)
        return Folded(found[:k].astype(np.float32), np.asarray(found[k], np.float32))
    if int(model.kind) == PREFERENCE:
        weight = float(model.confidence) * value
        solved = _solved(side.prior + (y.T * weight) @ y, y.T @ (1.0 + weight))
        x = (n * solved + shrink * side.mean) / (n + shrink)
    else:
        x = side.mean + _solved(side.prior + n * side.step, (y - side.centre).sum(axis=0))
    return Folded(x.astype(np.float32), np.zeros((), np.float32))


def _solved(matrix: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.linalg.solve(matrix, right) if len(right) else right
    return found
