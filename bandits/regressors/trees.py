"""Gradient-boosted trees, one model per arm: fitted by LightGBM, evaluated by us.

Fitting is a library's work and happens in ``retrain`` alone, where the log is at hand. What is
kept of it are the trees' nodes as plain arrays, so a state needs no pickle, serving imports no
LightGBM, and numpy and JAX walk the same trees. Features are the quantised integers and thresholds
are integers too: a comparison has no rounding.

The prediction of arm a is the sum of its leaves. Its uncertainty is that of a mean over as many
rows as the leaves were fitted to: ``scale = s · √(mean over trees of 1 / (n_leaf + 1))``, with s
the spread of the residuals (or what ``spread`` says). That is a heuristic, not a posterior: it is
wide where few rows were seen, which is what exploring needs. An arm with few rows has no trees yet;
it predicts its mean reward, shrunk by one row towards the mean of all arms.

Trees cannot be warm-started: every retraining fits them afresh to the rows it gets.

Source: Friedman, Annals of Statistics 29 (2001); Ke et al., NeurIPS 2017 (LightGBM).

Letters: ``G`` trees of an arm, ``N`` nodes of a tree, else as in :mod:`bandits.types`.
"""

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import ledger
from bandits.backend import Backend, numpy_backend
from bandits.features import ONE
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import ArmSums, Array, Batch, Contexts

#: Trees of an arm, leaves and depth of a tree: small enough to walk within a checkout.
TREES, LEAVES, DEPTH = 100, 15, 6
NODES = 2 * LEAVES - 1
#: Least rows of a leaf, and how much each tree corrects the ones before it.
LEAF_ROWS, RATE = 5, 0.1
#: Elements (rows x trees) that are walked at a time.
_CHUNK = 1 << 21


class TreeState(NamedTuple):
    """What was counted, and what was fitted.

    Attributes:
        trials: (A,) int64, decisions counted.
        reward: (A,) int64, sum of their rewards.
        square_high: (A,) int64, sum of ``r*r >> 32``.
        square_low: (A,) int64, sum of ``r*r & (2**32 - 1)``.
        rows: (A,) int64, rows that the arm's trees were fitted to; 0 where it has none.
        feature: (A, G, N) int32, the feature that a node compares; -1 at leaves.
        threshold: (A, G, N) int64, ``feature <= threshold`` goes left.
        left: (A, G, N) int32, node on the left; a leaf's is itself.
        right: (A, G, N) int32, node on the right.
        value: (A, G, N) float64, what a leaf adds, in units of the reward.
        inverse: (A, G, N) float64, a leaf's ``1 / (n + 1)`` divided by the number of trees.
        residual: (1,) float64, standard deviation of the residuals of the fit.
    """

    trials: Array
    reward: Array
    square_high: Array
    square_low: Array
    rows: Array
    feature: Array
    threshold: Array
    left: Array
    right: Array
    value: Array
    inverse: Array
    residual: Array


class Tree(NamedTuple):
    """One tree's nodes, fields (N,) as in :class:`TreeState`, ``rows`` the rows of each leaf."""

    feature: NDArray[np.int32]
    threshold: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    rows: NDArray[np.float64]


def regressor(
    *, arms: int, segments: int, features: int, space: Backend, spread: float | None = None
) -> Regressor:
    """The regressor; ``spread`` replaces the residuals' standard deviation where given."""

    def init() -> TreeState:
        return _empty(arms)

    def update(state: TreeState, batch: Batch) -> TreeState:
        flat = batch._replace(contexts=batch.contexts._replace(segment=batch.contexts.segment * 0))
        sums = ledger.contribution(flat, segments=1, arms=arms, backend=space)
        return _counted(state, sums)

    def predict(state: TreeState, contexts: Contexts) -> Prediction:
        x = inputs(contexts, segments=segments, space=space)
        return _predict(state, x, space=space, spread=spread)

    def retrain(state: TreeState, batch: Batch, seed: int) -> TreeState:
        fitted = _fitted(batch, arms=arms, segments=segments, seed=seed)
        return update(fitted, batch)

    return Regressor("trees", init, update, lambda state: state, predict, None, retrain)


def inputs(contexts: Contexts, *, segments: int, space: Backend) -> Array:
    """The integers that trees compare (B, D'): the features, and which segment where S > 1."""
    xp = space.xp
    features = xp.asarray(contexts.features)
    if segments == 1:
        return features
    every = xp.arange(segments, dtype=features.dtype)
    which = (xp.asarray(contexts.segment)[:, None] == every).astype(features.dtype)
    return xp.concatenate([features, which * ONE], axis=1)


def _empty(arms: int) -> TreeState:
    shape = (arms, TREES, NODES)
    count = np.zeros(arms, np.int64)
    node = np.zeros(shape, np.int32)
    return TreeState(
        trials=count, reward=count, square_high=count, square_low=count, rows=count,
        feature=node - 1, threshold=np.zeros(shape, np.int64), left=node, right=node,
        value=np.zeros(shape), inverse=np.zeros(shape), residual=np.zeros(1),
    )  # fmt: skip


def _counted(state: TreeState, sums: ArmSums) -> TreeState:
    return state._replace(
        trials=state.trials + sums.trials[0],
        reward=state.reward + sums.reward[0],
        square_high=state.square_high + sums.square_high[0],
        square_low=state.square_low + sums.square_low[0],
    )


def _predict(state: TreeState, x: Array, *, space: Backend, spread: float | None) -> Prediction:
    xp = space.xp
    trials, reward = xp.asarray(state.trials), xp.asarray(state.reward)
    everyone = reward.sum() / xp.maximum(trials.sum(), 1)
    alone = (reward + everyone) / (trials + 1.0)
    grown = xp.asarray(state.rows) > 0
    value, inverse = _walk(state, x, space)
    mean = xp.where(grown, value, alone)
    few = xp.where(grown, inverse, 1.0 / (trials + 1.0))
    noise = xp.maximum(xp.asarray(state.residual)[0] if spread is None else spread, 1e-9)
    # Before anything was fitted the rewards' own size is all there is to go by.
    size = xp.sqrt(_squares(state) / xp.maximum(trials.sum(), 1))
    noise = xp.where(grown.any() | (spread is not None), noise, xp.maximum(size, 1.0))
    scale = noise * xp.sqrt(few)
    return Prediction(mean, scale, xp.full(mean.shape, xp.inf))


def _squares(state: TreeState) -> Array:
    """Σ r² over all arms, float64."""
    return state.square_high.sum() * 2.0**32 + state.square_low.sum()


def _walk(state: TreeState, x: Array, space: Backend) -> tuple[Array, Array]:
    """The sums (B, A) of what the reached leaves add, and of their inverse counts."""
    xp = space.xp
    arms, trees, nodes = state.feature.shape
    fields = [xp.asarray(field).reshape(-1) for field in state[5:11]]
    feature, threshold, left, right, value, inverse = fields
    first = xp.arange(arms * trees) * nodes

    def rows(part: Array) -> Array:
        at = xp.broadcast_to(first, (part.shape[0], arms * trees))
        for _ in range(DEPTH):
            seen = xp.take_along_axis(part, xp.maximum(feature[at], 0), axis=1)
            at = first + xp.where(seen <= threshold[at], left[at], right[at])
        shape = (part.shape[0], arms, trees)
        sums = [field[at].reshape(shape).sum(axis=2) for field in (value, inverse)]
        return xp.stack(sums, axis=-1)

    if x.shape[1] == 0:
        x = xp.zeros((x.shape[0], 1), dtype=xp.int64)
    size = max(1, _CHUNK // (arms * trees))
    both = rows(x) if x.shape[0] <= size else space.map_rows(rows, (x,), size)
    return both[..., 0], both[..., 1]


def _fitted(batch: Batch, *, arms: int, segments: int, seed: int) -> TreeState:
    """Trees fitted to the batch's rows of sign +1, with nothing counted yet."""
    kept = np.asarray(batch.sign) > 0
    x = inputs(batch.contexts, segments=segments, space=numpy_backend())[kept]
    arm, reward = np.asarray(batch.arm)[kept], np.asarray(batch.reward)[kept]
    unit = (
        max(1.0, float(np.sqrt(np.mean(np.square(reward, dtype=np.float64)))))
        if kept.any()
        else 1.0
    )
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in TreeState._fields[5:11]}
    empty, rows, squares = _empty(1), np.zeros(arms, np.int64), 0.0
    for one in range(arms):
        mine = arm == one
        y = reward[mine] / unit
        trees: list[Tree] = []
        if len(y) >= 2 * LEAF_ROWS and np.ptp(y) > 0 and x.shape[1]:
            trees, left_over = _grow(x[mine], y, seed)
            squares += left_over
            rows[one] = len(y)
        elif len(y):
            squares += float(np.square(y - y.mean()).sum())
        packed = _packed(trees, unit, empty)
        for name, array in packed.items():
            parts[name].append(array)
    spread = unit * np.sqrt((squares + 1.0) / (len(reward) + 1.0))
    fields = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return _empty(arms)._replace(rows=rows, residual=np.array([spread]), **fields)


def _grow(x: NDArray[np.int64], y: NDArray[np.float64], seed: int) -> tuple[list[Tree], float]:
    """The trees of one arm, and the sum of their squared residuals."""
    lightgbm = library()
    options = {
        "objective": "regression", "learning_rate": RATE, "num_leaves": LEAVES,
        "max_depth": DEPTH, "min_data_in_leaf": LEAF_ROWS, "min_data_in_bin": 1,
        "lambda_l2": 1.0, "num_threads": 1, "deterministic": True, "force_row_wise": True,
        "seed": seed % (1 << 31), "verbose": -1,
    }  # fmt: skip
    model = lightgbm.train(options, lightgbm.Dataset(x.astype(np.float64), y), TREES)
    trees = [_tree(one["tree_structure"], len(y)) for one in model.dump_model()["tree_info"]]
    left_over = y - model.predict(x.astype(np.float64), num_threads=1)
    return trees, float(np.square(left_over).sum())


def _tree(root: dict[str, Any], rows: int) -> Tree:
    """LightGBM's nested nodes as arrays, the root first."""
    tree = Tree(
        np.full(NODES, -1, np.int32), np.zeros(NODES, np.int64),
        np.arange(NODES, dtype=np.int32), np.arange(NODES, dtype=np.int32),
        np.zeros(NODES), np.full(NODES, float(rows)),
    )  # fmt: skip
    waiting, free = [(root, 0)], 1
    while waiting:
        node, place = waiting.pop()
        if "split_feature" in node:
            tree.feature[place] = node["split_feature"]
            # The features are integers: x <= t is x <= floor(t).
            tree.threshold[place] = int(np.floor(node["threshold"]))
            tree.left[place], tree.right[place] = free, free + 1
            waiting += [(node["left_child"], free), (node["right_child"], free + 1)]
            free += 2
        else:
            tree.value[place] = node["leaf_value"]
            tree.rows[place] = node.get("leaf_count", rows)
    return tree


def _packed(trees: list[Tree], unit: float, empty: TreeState) -> dict[str, NDArray[Any]]:
    """One arm's trees as the fields (1, G, N) of a state; slots without a tree add nothing."""
    fields = {name: getattr(empty, name).copy() for name in TreeState._fields[5:11]}
    for place, tree in enumerate(trees):
        for name in ("feature", "threshold", "left", "right"):
            fields[name][0, place] = getattr(tree, name)
        fields["value"][0, place] = tree.value * unit
        fields["inverse"][0, place] = 1.0 / ((tree.rows + 1.0) * len(trees))
    return fields


def _size(reward: NDArray[np.int64]) -> float:
    """The root mean square of the rewards, at least 1."""
    square = np.mean(np.square(reward, dtype=np.float64)) if len(reward) else 0.0
    return max(1.0, float(np.sqrt(square)))


def library() -> Any:
    """LightGBM, by which trees are fitted.

    Raises:
        RuntimeError: it cannot be imported here; the message says what to install.
    """
    try:
        # By name: only fitting needs it, and a server that only serves may do without.
        return importlib.import_module("lightgbm")
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"trees are fitted by LightGBM, which cannot be imported here ({error}):"
            " pip install 'barter[trees]' (Debian also needs the package libgomp1)"
        ) from error
