"""Any depth between two: a simplex over a ladder of depths as a density, drawn and evaluated.

Arms at depths ``d_0 < … < d_A-1`` (say 0, 1, … 30 %) stand for the cells around them, which meet
halfway between neighbours and end at the first and the last depth. A simplex over the arms says how
likely each cell is, and within its cell every depth is equally likely: the density is ``mass /
width``, exact by construction, and a policy that learns from arms that resemble each other
(``thompson_hierarchical``, told the depths) makes it smooth.

:func:`drawn` turns the decision's ``u`` (:func:`bandits.sampling.uniform`) into a depth: ``u``
selects the arm as it always does, and how far it lies between the cumulative sums before and after
that arm says where in the cell. That is the inverse of the distribution function, so the arm's
logged simplex and ``u`` replay the depth in every bit. Whoever serves only the arms' own depths has
no density, but masses, and needs none of this.

Off-policy evaluation weighs a decision by the ratio of two densities. Over cells in which both are
constant (:func:`meet`) it is a ratio of masses (:func:`spread`), so a log of depths becomes one of
cells (:func:`logged`), and every estimator of :mod:`bandits.evaluation.ope` holds as it is. A
target that gives one depth is told as a narrow cell around it: Kallus and Zhou's box kernel.

Source: Kallus and Zhou, AISTATS 2018; Majzoubi et al., NeurIPS 2020 (discretised and smoothed
continuous actions).

>>> edges = cells(np.array([0.0, 0.1, 0.2]))
>>> edges
array([0.  , 0.05, 0.15, 0.2 ])
>>> drawn(np.array([[0.2, 0.6, 0.2]]), np.array([0.5]), edges)
Drawn(arm=array([1], dtype=int32), depth=array([0.1]), density=array([6.]))
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import sampling
from bandits.evaluation.ope import Log

Floats = NDArray[np.float64]


class Drawn(NamedTuple):
    """Depths that were drawn.

    Attributes:
        arm: (B,) int32, the cell.
        depth: (B,) float64, in the units of the edges.
        density: (B,) float64 > 0, of the distribution that it was drawn from, at that depth.
    """

    arm: NDArray[np.int32]
    depth: Floats
    density: Floats


def ladder(most: float, *, arms: int) -> Floats:
    """Depths (A,) from 0 to ``most`` at equal distances.

    Raises:
        ValueError: ``most`` is not above 0, or there are fewer than two arms.
    """
    if not 0 < most < np.inf or arms < 2:
        raise ValueError("most must be above 0, and arms at least 2")
    return np.linspace(0.0, most, arms)


def cells(depths: Floats) -> Floats:
    """Edges (A + 1,) of the cells around depths (A,), which must increase."""
    depths = np.asarray(depths, np.float64)
    if depths.ndim != 1 or len(depths) < 2 or not bool(np.all(np.diff(depths) > 0)):
        raise ValueError("depths: at least two are needed, each greater than the one before")
    middle = 0.5 * (depths[1:] + depths[:-1])
    return np.concatenate([depths[:1], middle, depths[-1:]])


def drawn(simplex: Floats, u: Floats, edges: Floats) -> Drawn:
    """The depth that ``u`` selects from each row.

    Args:
        simplex: (B, A) masses of the cells, as served and logged.
        u: (B,) in [0, 1).
        edges: (A + 1,).
    """
    simplex, u = np.asarray(simplex, np.float64), np.asarray(u, np.float64)
    _check(edges)
    if simplex.shape[1:] != (len(edges) - 1,):
        raise ValueError(f"simplex must be (B, {len(edges) - 1}), not {simplex.shape}")
    arm, row = sampling.draws(simplex, u), np.arange(len(u))
    mass, width = simplex[row, arm], np.diff(edges)[arm]
    before = np.cumsum(simplex, axis=1)[row, arm] - mass
    found = edges[arm] + width * np.clip((u - before) / mass, 0.0, 1.0)
    # Sums are rounded: a depth at the border of two cells stays in the one that was drawn.
    return Drawn(arm, np.minimum(found, np.nextafter(edges[arm + 1], -np.inf)), mass / width)


def density(simplex: Floats, depth: Floats, edges: Floats) -> Floats:
    """The density (B,) of each row's masses (B, A) at its depth (B,)."""
    place = _cell(depth, edges)
    found: Floats = simplex[np.arange(len(depth)), place] / np.diff(edges)[place]
    return found


def meet(*edges: Floats) -> Floats:
    """The edges of all, together: within its cells everything that these cut up is constant."""
    return np.unique(np.concatenate(edges))


def spread(simplex: Floats, edges: Floats, onto: Floats) -> Floats:
    """The masses (B, C) that the density of ``simplex`` (B, A) gives the cells of ``onto``.

    Raises:
        ValueError: ``onto`` does not cover ``edges``.
    """
    _check(edges)
    _check(onto)
    if not onto[0] <= edges[0] or not edges[-1] <= onto[-1]:
        raise ValueError("onto: must reach as far as the edges do")
    low, high = np.maximum(edges[:-1, None], onto[:-1]), np.minimum(edges[1:, None], onto[1:])
    share = np.maximum(high - low, 0.0) / np.diff(edges)[:, None]
    found: Floats = np.asarray(simplex, np.float64) @ share
    return found


def logged(
    depth: Floats, simplex: Floats, reward: NDArray[np.integer], edges: Floats, onto: Floats
) -> Log:
    """Decisions with depths as a log over the cells of ``onto``, for :mod:`bandits.evaluation.ope`.

    Its estimators then take ``spread(target, target's edges, onto)`` as the target. They are exact
    where ``onto`` is :func:`meet` of the log's edges and the target's.

    Args:
        depth: (N,) given.
        simplex: (N, A) logged masses.
        reward: (N,) integer units.
        edges: (A + 1,) of the simplex.
        onto: (C + 1,).

    Raises:
        ValueError: a depth lies outside ``edges``, or ``onto`` does not cover them.
    """
    _cell(depth, edges)
    arm = _cell(depth, onto)
    mass = spread(simplex, edges, onto)[np.arange(len(depth)), arm]
    return Log(arm, mass, reward)


def _cell(depth: Floats, edges: Floats) -> NDArray[np.intp]:
    """Which cell each depth lies in; an edge belongs to the cell that it begins."""
    _check(edges)
    if not bool(np.all((depth >= edges[0]) & (depth <= edges[-1]))):
        raise ValueError(f"depth: must be in [{edges[0]:g}, {edges[-1]:g}]")
    return np.minimum(np.searchsorted(edges, depth, side="right") - 1, len(edges) - 2)


def _check(edges: Floats) -> None:
    if edges.ndim != 1 or len(edges) < 2 or not bool(np.all(np.diff(edges) > 0)):
        raise ValueError("edges: must increase, and there must be at least two")
