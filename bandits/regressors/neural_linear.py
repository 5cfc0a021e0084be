"""A network learns the features, and arms are linear in them: exact over integer sums.

``z = φ(x)`` is what two layers of rectified units make of the context. The reward of arm a is
linear in an intercept, the context itself and z, and that last layer is the Bayesian regression of
:mod:`bandits.regressors.linear`, with its integer sums: between two retrainings, learning is
counting, and the order of the rows leaves no trace. ``retrain`` fits φ to the log, which is the
replay buffer, starting from what it was, and counts the sums afresh over the same rows under the
new φ: that aligns the last layer with it.

**φ is computed in integers.** Weights are stored in 2**-16 and activations are rounded to 2**-12;
both are bounded, so that a float64 matrix product adds integers below 2**53 and has no rounding.
z is thus the same integer on numpy, on JAX, on a CPU or a GPU, whatever the order of summation;
there are no ties to break differently. (Training is float32 and promises this of no two machines;
its result is what is stored.) Serving needs neither JAX nor Flax.

The network is one for all arms; where several campaigns are to share one, give the campaign as
one-hot features; else each campaign has its own, and :func:`retrain_many` fits all of one shape in
one call.

Source: Snoek et al., ICML 2015; Riquelme, Tucker and Snoek, ICLR 2018 (NeuralLinear).

Letters: ``I`` inputs, ``H`` units of a layer, ``P`` columns of the last layer, else as in
:mod:`bandits.types`.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import ledger
from bandits.backend import Backend, numpy_backend
from bandits.features import ONE
from bandits.regressors import linear
from bandits.regressors.linear import LinearBelief, LinearSums
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import FEATURE_LIMIT, Array, Batch, Contexts

#: Units of each of the two layers.
UNITS = 32
#: Fractional bits of a stored weight, and the largest magnitude of its integer: weights lie in
#: (-16, 16), and a sum of 2**16 products with an activation stays below 2**53.
WEIGHT_BITS = 16
WEIGHT_LIMIT = (1 << 20) - 1


class NeuralState(NamedTuple):
    """What was counted, and what was fitted.

    Attributes:
        trials: (A,) int64, as are the next six those of
            :class:`~bandits.regressors.linear.LinearSums`, over the columns of the last layer.
        conversions: (A,) int64.
        reward: (A,) int64.
        square_high: (A,) int64.
        square_low: (A,) int64.
        gram: (A, P, P) int64.
        moment: (A, P) int64.
        weights: (W,) int32 in 2**-16, the layers' kernels and biases; only ``retrain`` changes
            them.
    """

    trials: Array
    conversions: Array
    reward: Array
    square_high: Array
    square_low: Array
    gram: Array
    moment: Array
    weights: Array


class NeuralBelief(NamedTuple):
    """The last layer's posterior, and the weights (W,) int32 under which it holds."""

    last: LinearBelief
    weights: Array


def regressor(
    *,
    arms: int,
    segments: int,
    features: int,
    space: Backend,
    precision: float | None = None,
    spread: float | None = None,
    start: str = "nothing",
    units: int = UNITS,
) -> Regressor:
    """The regressor; the options of the last layer are those of the linear one."""
    width = linear.columns(segments=segments, features=features)
    last = functools.partial(
        linear.posterior, precision=precision, spread=spread, centred=start == "mean"
    )

    def init() -> NeuralState:
        sums = linear.zeros(arms=arms, width=width + units)
        return NeuralState(*sums, weights=first_weights(inputs=width - 1, units=units))

    def columns(weights: Array, contexts: Contexts) -> Array:
        x = linear.design(contexts, segments=segments, space=space)
        z = hidden(weights, x[:, 1:], units=units, space=space)
        return space.xp.concatenate([x, z], axis=1)

    def update(state: NeuralState, batch: Batch) -> NeuralState:
        more = linear.contribution(
            columns(state.weights, batch.contexts), batch, arms=arms, space=space
        )
        return NeuralState(*ledger.add(sums_of(state), more), weights=state.weights)

    def believe(state: NeuralState) -> NeuralBelief:
        return NeuralBelief(last(sums_of(state), space=space), space.xp.asarray(state.weights))

    def predict(belief: NeuralBelief, contexts: Contexts) -> Prediction:
        x = columns(belief.weights, contexts) / float(ONE)
        return linear.predicted(belief.last, x, space=space)

    def retrain(state: NeuralState, batch: Batch, seed: int) -> NeuralState:
        return retrain_many([state], [batch], seed, arms=arms, segments=segments, units=units)[0]

    return Regressor("neural_linear", init, update, space.jit(believe), predict, None, retrain)


def sums_of(state: NeuralState) -> LinearSums:
    """The counted part of a state."""
    return LinearSums(*state[: len(LinearSums._fields)])


def shapes(*, inputs: int, units: int) -> tuple[tuple[int, ...], ...]:
    """The arrays that the flat weights are cut into: kernel, bias, kernel, bias."""
    return ((inputs, units), (units,), (units, units), (units,))


def unpacked(weights: Array, *, inputs: int, units: int) -> list[Array]:
    """The flat weights (W,) as arrays of :func:`shapes`; views where the namespace has them."""
    parts, begin = [], 0
    for shape in shapes(inputs=inputs, units=units):
        size = int(np.prod(shape))
        parts.append(weights[begin : begin + size].reshape(shape))
        begin += size
    return parts


def packed(parts: Sequence[Array]) -> NDArray[np.int32]:
    """Arrays of real weights as flat integers in 2**-16, cut off at ±WEIGHT_LIMIT."""
    flat = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])
    scaled = np.clip(np.rint(flat * (1 << WEIGHT_BITS)), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    whole: NDArray[np.int32] = scaled.astype(np.int32)
    return whole


def first_weights(*, inputs: int, units: int, seed: int = 0) -> NDArray[np.int32]:
    """Weights (W,) before anything was fitted: the same for every state of a shape and seed.

    Kernels by He et al. (2015); biases spread the kinks of the units over the inputs' range.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for shape in shapes(inputs=inputs, units=units):
        scale = np.sqrt(2.0 / max(1, shape[0])) if len(shape) == 2 else 0.5
        parts.append(scale * rng.normal(size=shape))
    return packed(parts)


def hidden(weights: Array, x: Array, *, units: int, space: Backend) -> Array:
    """What φ makes of inputs x (B, I) int64 in 2**-12: z (B, H) int64 in 2**-12, without error."""
    xp = space.xp
    one, first, two, second = (
        part.astype(xp.float64)
        for part in unpacked(xp.asarray(weights), inputs=x.shape[1], units=units)
    )
    z = x.astype(xp.float64)
    for kernel, bias in ((one, first), (two, second)):
        z = xp.rint((z @ kernel + bias * float(ONE)) / float(1 << WEIGHT_BITS))
        z = xp.clip(z, 0.0, float(FEATURE_LIMIT))
    return z.astype(xp.int64)


def retrain_many(
    states: Sequence[NeuralState],
    batches: Sequence[Batch],
    seed: int,
    *,
    arms: int,
    segments: int,
    units: int = UNITS,
) -> list[NeuralState]:
    """Each state fitted to its batch: one compiled call for all campaigns of one shape.

    Args:
        states: of C campaigns of the same arms, segments and features.
        batches: the rows of each; those of sign +1 are learnt from.
        seed: of the order of the rows.
        arms: A.
        segments: S.
        units: H.
    """
    space = numpy_backend()
    jobs = [
        _job(state, batch, arms=arms, segments=segments)
        for state, batch in zip(states, batches, strict=True)
    ]
    # By name: only fitting needs JAX and Flax, and a server that only serves never reaches them.
    network: Any = importlib.import_module("bandits.regressors.network")
    fitted = network.fit_many(jobs, seed, units=units)
    features = states[0].gram.shape[-1] - units - segments
    update = regressor(
        arms=arms, segments=segments, features=features, space=space, units=units
    ).update
    empty = linear.zeros(arms=arms, width=segments + features + units)
    return [
        update(NeuralState(*empty, weights=weights), batch)
        for (weights, _), batch in zip(fitted, batches, strict=True)
    ]


class Job(NamedTuple):
    """What one network is fitted to.

    Attributes:
        inputs: (N, I) float32.
        arm: (N,) int32, numbered by first appearance, so that arms' names do not matter.
        target: (N,) float32, rewards less their mean, over their spread.
        weights: (W,) int32 to start from.
        head: (A, P) float32, the last layer to start from.
    """

    inputs: NDArray[np.float32]
    arm: NDArray[np.int32]
    target: NDArray[np.float32]
    weights: NDArray[np.int32]
    head: NDArray[np.float32]


def _job(state: NeuralState, batch: Batch, *, arms: int, segments: int) -> Job:
    kept = np.asarray(batch.sign) > 0
    x = linear.design(batch.contexts, segments=segments, space=numpy_backend())[kept]
    arm = np.asarray(batch.arm)[kept]
    reward = np.asarray(batch.reward)[kept].astype(np.float64)
    centre = float(reward.mean()) if len(reward) else 0.0
    unit = float(reward.std()) if len(reward) else 0.0
    unit = unit if unit > 0 else 1.0
    seen, at = np.unique(arm, return_index=True)
    order = seen[np.argsort(at)]
    number = np.zeros(arms, np.int32)
    number[order] = np.arange(len(order))
    counted = LinearSums(*(np.asarray(field) for field in sums_of(state)))
    head = np.zeros(state.moment.shape)
    head[: len(order)] = linear.posterior(counted, space=numpy_backend()).mean[order]
    head[: len(order), 0] -= centre
    return Job(
        (x[:, 1:] / float(ONE)).astype(np.float32), number[arm],
        ((reward - centre) / unit).astype(np.float32), np.asarray(state.weights),
        (head / unit).astype(np.float32),
    )  # fmt: skip
