"""One orientation for all refits, so that a bandit's posterior over the vectors stays valid.

Scores x · y do not change when both sides are turned alike, so two fits of the same history give
vectors that have nothing to do with each other. Before a refit is published it is turned onto the
last model: by the orthogonal R that minimises |Y_new R - Y_old| over the items that both know,
which is R = U Vᵀ of Y_newᵀ Y_old = U S Vᵀ.

Source: Schönemann, Psychometrika 1966.
"""

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.factors import Factors


def aligned(
    model: Factors,
    last: Factors,
    *,
    shared: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
) -> Factors:
    """``model`` turned onto ``last``; every score stays what it was.

    Args:
        model: the refit.
        last: what was published before it, with as many factors.
        shared: the same items by their number in ``model`` and in ``last``; unless given, those
            numbered alike in both.

    Raises:
        ValueError: the models have different numbers of factors.
    """
    if model.items.shape[1] != last.items.shape[1]:
        raise ValueError(
            f"models must have the same factors, not {model.items.shape[1]} and "
            f"{last.items.shape[1]}"
        )
    if shared is None:
        both = np.arange(min(len(model.items), len(last.items)))
        shared = both, both
    return turned(model, rotation(model.items[shared[0]], last.items[shared[1]]))


def rotation(new: NDArray[np.floating], old: NDArray[np.floating]) -> NDArray[np.float64]:
    """(K, K) the orthogonal matrix that brings ``new`` (N, K) closest to ``old`` (N, K)."""
    u, _, v = np.linalg.svd(new.astype(np.float64).T @ old.astype(np.float64))
    turn: NDArray[np.float64] = u @ v
    return turn


def turned(model: Factors, turn: NDArray[np.float64]) -> Factors:
    """``model`` in other coordinates: vectors times ``turn``, and all that folds newcomers in."""
    vectors = ("users", "items", "user_mean", "item_mean", "centre")
    matrices = ("user_prior", "item_prior", "user_step", "item_step")
    changed = {name: getattr(model, name) @ turn for name in vectors}
    changed |= {name: turn.T @ getattr(model, name) @ turn for name in matrices}
    return model._replace(**{name: array.astype(np.float32) for name, array in changed.items()})
