"""An epinet: one network that says what it expects, and a small one that says how unsure it is.

The large network gives the mean reward of every arm, linear in the context and in the features z
that it makes. The small one, the **epinet**, reads the same columns and a random index ζ of K
numbers, and adds ``g(columns, ζ)·ζ``; a fixed random prior adds ``p(x)·ζ``. It is trained to give
back, for every ζ, the noise ``c·ζ`` that belongs to a row for good (c a random unit vector, times
the spread of a reward), less the prior; it leaves the large network's features alone. Where there
are rows, what depends on ζ averages out; where there are none, the prior is left: that is the
uncertainty that more rows would take away, for the price of one network instead of many.

M indices are drawn once and kept, so each is a frozen draw and P(arm is best) the share of the
draws that it is best in: exact, in steps of 1/M. All is fitted by ``retrain``; between two
retrainings nothing is learnt. Arms are numbered by when they first appear in the rows, so that
their names do not matter; an arm without rows has no draws that mean anything.

Source: Osband et al., NeurIPS 2023 (epistemic neural networks; there g has two layers, here one).

Letters: ``M`` indices, ``K`` numbers of an index, ``E`` units of the epinet, ``H`` units of a layer
of the network, ``P`` columns of its last layer, else as in :mod:`bandits.types`.
"""

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import ledger
from bandits.backend import Backend, numpy_backend
from bandits.features import ONE
from bandits.regressors import linear, neural_linear
from bandits.regressors.ensemble import PRIOR, Rows
from bandits.regressors.neural_linear import UNITS, WEIGHT_BITS
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import Array, Batch, Contexts

#: Frozen indices, the numbers of one, and the units of the epinet.
INDICES, SIZE, INNER = 100, 8, 15


class EpinetState(NamedTuple):
    """What was counted, and what was fitted.

    Attributes:
        trials: (A,) int64, decisions counted.
        reward: (A,) int64, sum of their rewards.
        square_high: (A,) int64, sum of ``r*r >> 32``.
        square_low: (A,) int64, sum of ``r*r & (2**32 - 1)``.
        number: (A,) int32, the place of an arm among those of the rows of the fit; -1 if it had
            none. Fields by arm below are in that order.
        weights: (W,) int32 in 2**-16, the network's layers.
        head: (A, P) int32 in 2**-16, its last layer.
        inner: (P + K, E) int32 in 2**-16, the epinet's first layer.
        outer: (A, K, E) int32 in 2**-16, its second.
        centre: (1,) float64, mean of the rewards of the fit.
        unit: (1,) float64, their standard deviation.
        residual: (1,) float64, that of what the means left of them.
    """

    trials: Array
    reward: Array
    square_high: Array
    square_low: Array
    number: Array
    weights: Array
    head: Array
    inner: Array
    outer: Array
    centre: Array
    unit: Array
    residual: Array


class Fixed(NamedTuple):
    """What is drawn once: the prior's layers (W,) and heads (K, A, P), int32; indices (M, K)."""

    weights: NDArray[np.int32]
    heads: NDArray[np.int32]
    indices: NDArray[np.float64]


class EpinetJob(NamedTuple):
    """What is fitted: rewards standardised, arms by number, weights as real numbers.

    Attributes:
        inputs: (N, I) float32.
        arm: (N,) int32.
        target: (N,) float32.
        offset: (N, K) float32, the prior less the noise: what an index's draw misses its reward by
            while network and epinet are 0, per number of the index.
        weights: (W,) int32.
        head: (A, P) float32.
        inner: (P + K, E) float32.
        outer: (A, K, E) float32.
    """

    inputs: NDArray[np.float32]
    arm: NDArray[np.int32]
    target: NDArray[np.float32]
    offset: NDArray[np.float32]
    weights: NDArray[np.int32]
    head: NDArray[np.float32]
    inner: NDArray[np.float32]
    outer: NDArray[np.float32]


def regressor(
    *,
    arms: int,
    segments: int,
    features: int,
    space: Backend,
    indices: int = INDICES,
    units: int = UNITS,
    prior: float = PRIOR,
    spread: float | None = None,
) -> Regressor:
    """The regressor; its belief is its state.

    Args:
        arms: A.
        segments: S.
        features: D.
        space: the namespace.
        indices: M.
        units: H.
        prior: how large the prior is, in standard deviations of the rewards.
        spread: the standard deviation of the noise; that of the residuals of the last fit when left
            out.
    """
    width = linear.columns(segments=segments, features=features)
    first = neural_linear.first_weights(inputs=width - 1, units=units)
    rng, heads = np.random.default_rng(0), (SIZE, arms, width + units)
    numbers = rng.normal(scale=prior / np.sqrt(heads[-1] * SIZE), size=heads)
    packed = neural_linear.packed([numbers]).reshape(heads)
    fixed = Fixed(first, packed, rng.normal(size=(indices, SIZE)))
    begin = rng.normal(scale=1.0 / np.sqrt(width + units), size=(width + units + SIZE, INNER))

    def init() -> EpinetState:
        none, nothing = np.zeros(arms, np.int64), np.zeros((arms, width + units), np.int32)
        return EpinetState(
            none, none, none, none, np.full(arms, -1, np.int32), first, nothing,
            neural_linear.packed([begin]).reshape(begin.shape),
            np.zeros((arms, SIZE, INNER), np.int32), np.zeros(1), np.ones(1), np.zeros(1),
        )  # fmt: skip

    def update(state: EpinetState, batch: Batch) -> EpinetState:
        flat = batch._replace(contexts=batch.contexts._replace(segment=batch.contexts.segment * 0))
        sums = ledger.contribution(flat, segments=1, arms=arms, backend=space)
        names = EpinetState._fields[:4]
        return state._replace(**{n: getattr(state, n) + getattr(sums, n)[0] for n in names})

    def predict(state: EpinetState, contexts: Contexts) -> Prediction:
        x = linear.design(contexts, segments=segments, space=space)
        mean, epistemic = _rewards(state, x, fixed, units=units, space=space)
        return Prediction(mean, draws=mean[:, None, :] + epistemic)

    def retrain(state: EpinetState, batch: Batch, seed: int) -> EpinetState:
        kept = np.asarray(batch.sign) > 0
        x = linear.design(batch.contexts, segments=segments, space=numpy_backend())[kept]
        rows = Rows(x, np.asarray(batch.arm)[kept], np.asarray(batch.reward)[kept])
        state = EpinetState(*(np.asarray(field) for field in state))
        if len(rows.arm):
            state = _fitted(state, rows, fixed, spread=spread, seed=seed, units=units)
        none = np.zeros(arms, np.int64)
        counted = state._replace(trials=none, reward=none, square_high=none, square_low=none)
        return update(counted, batch)

    return Regressor("epinet", init, update, lambda state: state, predict, None, retrain)


def _real(part: Array, xp: Any) -> Array:
    return xp.asarray(part).astype(xp.float64) / float(1 << WEIGHT_BITS)


def _columns(weights: Array, x: Array, *, units: int, space: Backend) -> Array:
    """The columns (B, P) of the last layer, real numbers."""
    z = neural_linear.hidden(weights, x[:, 1:], units=units, space=space)
    return space.xp.concatenate([x, z], axis=1) / float(ONE)


def _rewards(
    state: EpinetState, x: Array, fixed: Fixed, *, units: int, space: Backend
) -> tuple[Array, Array]:
    """Of rows x (B, P - H): the means (B, A), and what each index adds to them (B, M, A)."""
    xp = space.xp
    place = xp.maximum(xp.asarray(state.number), 0)
    index = xp.asarray(fixed.indices)
    columns = _columns(state.weights, x, units=units, space=space)
    inner = _real(state.inner, xp)
    size = columns.shape[1]
    units_of = columns @ inner[:size]
    z = xp.maximum(units_of[:, None, :] + (index @ inner[size:])[None], 0.0)
    outer = xp.einsum("mk,ake->mae", index, _real(state.outer, xp)[place])
    heads = xp.einsum("mk,kap->map", index, _real(fixed.heads, xp)[:, place])
    old = _columns(fixed.weights, x, units=units, space=space)
    more = xp.einsum("bme,mae->bma", z, outer) + xp.einsum("bp,map->bma", old, heads)
    unit = xp.asarray(state.unit)
    mean = xp.asarray(state.centre) + unit * (columns @ _real(state.head, xp)[place].T)
    return mean, unit * more


def _fitted(
    state: EpinetState, rows: Rows, fixed: Fixed, *,
    spread: float | None, seed: int, units: int,
) -> EpinetState:  # fmt: skip
    """Network and epinet fitted to the rows, starting from what they were; nothing is counted."""
    space = numpy_backend()
    state = _moved(state, rows)
    arm, noise = state.number[rows.arm], spread or float(state.residual[0] or state.unit[0])
    old = _columns(fixed.weights, rows.x, units=units, space=space)
    known = np.einsum("np,knp->nk", old, _real(fixed.heads, np)[:, arm])
    # Row by row, so that a row has the same noise when the log has grown.
    unit_vectors = np.random.default_rng(1).normal(size=known.shape)
    unit_vectors /= np.linalg.norm(unit_vectors, axis=1, keepdims=True)
    job = EpinetJob(
        (rows.x[:, 1:] / float(ONE)).astype(np.float32), arm,
        ((rows.reward - state.centre) / state.unit).astype(np.float32),
        (known - noise / state.unit * unit_vectors).astype(np.float32), state.weights,
        *(_real(part, np).astype(np.float32) for part in (state.head, state.inner, state.outer)),
    )  # fmt: skip
    # By name: only fitting needs JAX, and a server that only serves never reaches it.
    network: Any = importlib.import_module("bandits.regressors.network")
    layers, *others = network.fit_epinet(job, seed, units=units)
    names = ("head", "inner", "outer")
    packed = [neural_linear.packed([part]).reshape(part.shape) for part in others]
    fields = dict(zip(names, packed, strict=True))
    state = state._replace(weights=neural_linear.packed(layers), **fields)
    one = fixed._replace(indices=fixed.indices[:1])
    mean, _ = _rewards(state, rows.x, one, units=units, space=space)
    left = rows.reward - mean[np.arange(len(arm)), rows.arm]
    return state._replace(residual=np.array([np.sqrt(np.mean(left**2))]))


def _moved(state: EpinetState, rows: Rows) -> EpinetState:
    """The same predictions with the arms numbered, and the rewards measured, as in the rows."""
    seen, at = np.unique(rows.arm, return_index=True)
    number = np.full(state.number.shape, -1, np.int32)
    number[seen[np.argsort(at)]] = np.arange(len(seen))
    centre, unit = np.array([rows.reward.mean()]), np.array([rows.reward.std() or 1.0])
    kept = (state.number >= 0) & (number >= 0)
    head, outer = np.zeros(state.head.shape), np.zeros(state.outer.shape)
    for whole, part in ((head, state.head), (outer, state.outer)):
        whole[number[kept]] = _real(part, np)[state.number[kept]] * (state.unit / unit)
    head[number[kept], 0] += (state.centre - centre) / unit
    fields = {"head": head, "outer": outer}
    packed = {k: neural_linear.packed([v]).reshape(v.shape) for k, v in fields.items()}
    return state._replace(number=number, centre=centre, unit=unit, **packed)
