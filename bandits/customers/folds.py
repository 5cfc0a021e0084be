"""Folds for cross-validation that keep what belongs together in one fold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def by_cluster(cluster: NDArray[Any], count: int, *, seed: int) -> NDArray[np.int64]:
    """The fold (R,) of each row, 0 to ``count`` less one; rows of one cluster are in one fold.

    Clusters are shared out evenly, whatever their sizes.

    Args:
        cluster: (R,) of any values, such as customers.
        count: of folds.
        seed: of the shuffle.

    Raises:
        ValueError: there are fewer than two folds, or fewer clusters than folds.
    """
    names, code = np.unique(cluster, return_inverse=True)
    if not 2 <= count <= len(names):
        raise ValueError(f"folds: must be from 2 to {len(names)}, the number of clusters")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    out: NDArray[np.int64] = (shuffled % count)[code.reshape(-1)].astype(np.int64)
    return out
