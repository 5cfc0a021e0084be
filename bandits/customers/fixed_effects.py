"""Regressions with fixed effects: what is constant in a store, a week, a product is taken out.

A fixed effect is one dummy variable per level. They are never written out: by the theorem of
Frisch, Waugh and Lovell the other coefficients are those of a regression on what is left of every
column after its means within the levels have been taken off (:func:`within`), one effect after the
other, round and round until nothing changes where there are several.

Source: Frisch and Waugh, Econometrica 1 (1933); Guimarães and Portugal, Stata Journal 10 (2010);
clusters: Cameron and Miller, Journal of Human Resources 50 (2015); counts: Correia, Guimarães and
Zylkin, Stata Journal 20 (2020).

Letters: ``R`` rows, ``K`` columns; an effect or a cluster is (R,) of any values.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

#: Rounds of taking means off, and what may be left of them relative to the columns' size.
ROUNDS, LEFT = 10_000, 1e-11


class Effects(NamedTuple):
    """Fixed effects.

    Attributes:
        codes: each (R,), the level of a row, 0 to the number of levels less one.
        levels: how many levels each has.
    """

    codes: tuple[Codes, ...]
    levels: tuple[int, ...]


class Fit(NamedTuple):
    """A regression.

    Attributes:
        estimate: (K,) coefficients.
        covariance: (K, K) of them, robust to unequal variances and to dependence within clusters.
        residual: (R,) what is left.
        clusters: how many there are; the rows, where none are given.
    """

    estimate: Floats
    covariance: Floats
    residual: Floats
    clusters: int


def effects(columns: Sequence[NDArray[Any]], *, rows: int) -> Effects:
    """The levels of each column; one constant where there are none.

    Raises:
        ValueError: a column is not (R,).
    """
    codes = [np.zeros(rows, np.int64)] if not columns else [coded(column) for column in columns]
    if any(len(code) != rows for code in codes):
        raise ValueError(f"fixed effects must be ({rows},)")
    return Effects(tuple(codes), tuple(int(code.max(initial=-1)) + 1 for code in codes))


def coded(column: NDArray[Any]) -> Codes:
    """The values as 0, 1, ... in ascending order."""
    return np.unique(column, return_inverse=True)[1].reshape(-1).astype(np.int64)


def within(columns: Floats, effects: Effects, weight: Floats | None = None) -> Floats:
    """The columns (R, K) less their (weighted) means within the levels of every effect.

    Raises:
        ValueError: the rounds do not settle, as the effects hardly overlap.
    """
    out = np.array(columns, np.float64)
    w = np.ones(len(out)) if weight is None else weight
    size = np.sqrt(np.maximum((w[:, None] * out**2).sum(axis=0), 1e-300) / w.sum())
    totals = [np.bincount(c, w, n) for c, n in zip(effects.codes, effects.levels, strict=True)]
    for _ in range(ROUNDS):
        moved = 0.0
        for code, total in zip(effects.codes, totals, strict=True):
            for k in range(out.shape[1]):
                mean = np.bincount(code, w * out[:, k], len(total)) / np.maximum(total, 1e-300)
                out[:, k] -= mean[code]
                moved = max(moved, float(np.abs(mean).max()) / size[k])
        if len(totals) == 1 or moved < LEFT:
            return out
    raise ValueError("fixed effects: they hardly overlap, so their means do not settle")


def least_squares(
    y: Floats, x: Floats, effects: Effects, *, cluster: NDArray[Any] | None,
    weight: Floats | None = None,
) -> Fit:  # fmt: skip
    """The regression of y (R,) on x (R, K) and the effects.

    Args:
        y: (R,) what is explained.
        x: (R, K) what explains it.
        effects: fixed effects.
        cluster: (R,) rows of one value may depend on each other; None for none that do.
        weight: (R,) of the rows, for a step of a reweighted regression.

    Raises:
        ValueError: a column does not vary within the effects, or says the same as the others.
    """
    w = np.ones(len(y)) if weight is None else weight
    moved = within(np.column_stack([y, x]), effects, weight)
    y, x, before = moved[:, 0], moved[:, 1:], x
    gram = x.T @ (w[:, None] * x)
    _check_varies(gram, (w[:, None] * before**2).sum(axis=0))
    bread = np.asarray(np.linalg.inv(gram), np.float64)
    estimate: Floats = bread @ (x.T @ (w * y))
    residual = y - x @ estimate
    scores = x * (w * residual)[:, None]
    covariance, clusters = sandwich(bread, scores, cluster, absorbed=effects)
    return Fit(estimate, covariance, residual, clusters)


def _check_varies(gram: Floats, before: Floats) -> None:
    """Refuse columns of which the effects, or the other columns, leave nothing but rounding."""
    square = np.diag(gram)
    if (square > 1e-16 * before).all():
        alone = gram / np.sqrt(np.outer(square, square))
        if np.linalg.eigvalsh(alone)[0] > 1e-10:
            return
    raise ValueError("a column does not vary within the fixed effects, or repeats another one")


def sandwich(
    bread: Floats, scores: Floats, cluster: NDArray[Any] | None, *, absorbed: Effects | None = None
) -> tuple[Floats, int]:
    """The covariance ``bread (Σ_c s_c s_cᵀ) bread`` with its small-sample factor, and the clusters.

    Effects whose levels lie within one cluster each cost no degrees of freedom.

    Raises:
        ValueError: there is one cluster only.
    """
    rows, width = scores.shape
    group = np.arange(rows) if cluster is None else coded(cluster)
    count = int(group.max()) + 1
    if count < 2:
        raise ValueError("cluster: at least two are needed")
    free = width
    for code, levels in zip(*absorbed, strict=True) if absorbed else ():
        if cluster is None or len(np.unique(code * count + group)) > levels:
            free += levels
    sums = np.column_stack([np.bincount(group, scores[:, k], count) for k in range(width)])
    factor = count / (count - 1) * (rows - 1) / max(rows - free, 1)
    return factor * bread @ (sums.T @ sums) @ bread, count
