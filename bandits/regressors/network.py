"""The half of the neural regressors that trains: Flax defines the network, optax fits it.

In a module of its own, imported by name, so that serving reaches neither. Everything runs in one
compiled call for all campaigns of a shape, on whatever device JAX has. Rows are filled up to a
power of eight, which costs memory but no time, so that a growing log compiles two or three times.

Source: Kingma and Ba, ICLR 2015 (Adam); Loshchilov and Hutter, ICLR 2019 (decoupled decay).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import linen
from numpy.typing import NDArray

from bandits.backend import jax_backend
from bandits.regressors import neural_linear
from bandits.regressors.epinet import EpinetJob
from bandits.regressors.neural_linear import WEIGHT_BITS, Job
from bandits.types import Array

#: Rows of a step, the rate at its greatest, and how weights decay.
ROWS, RATE, DECAY = 128, 3e-3, 1e-4
#: Steps of a retraining: as many as pass over the rows ``PASSES`` times, within bounds.
PASSES, FEWEST, MOST = 20, 200, 1000
#: Rows that any log is filled up to.
SMALLEST = 1 << 12


class Network(linen.Module):
    """Two layers of rectified units, and one linear output per arm over inputs and units."""

    units: int
    arms: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """The rewards (B, A) of inputs (B, I)."""
        z = linen.relu(linen.Dense(self.units)(x))
        z = linen.relu(linen.Dense(self.units)(z))
        return linen.Dense(self.arms)(jnp.concatenate([x, z], axis=1))


def fit_many(
    jobs: Sequence[Job], seed: int, *, units: int
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """The fitted weights (W,) and last layer (A, P) of each job, all in one compiled call.

    A job needs no rows: then it keeps its weights.
    """
    jax_backend()  # 64-bit mode, so that a seed says the same whoever called first
    most = max(len(job.arm) for job in jobs)
    size = SMALLEST
    while size < most:
        size *= 8
    padded = [_padded(job, size) for job in jobs]
    stacked = [jnp.asarray(np.stack(field)) for field in zip(*padded, strict=True)]
    count = jnp.asarray([len(job.arm) for job in jobs], jnp.int32)
    steps = int(np.clip(PASSES * most // ROWS, FEWEST, MOST))
    keys = jax.random.split(jax.random.key(seed), len(jobs))
    parts = _fit(*stacked, count, keys, steps, units=units)
    found = []
    for one, job in enumerate(jobs):
        *layers, head = [np.asarray(part[one]) for part in parts]
        weights = neural_linear.packed(layers) if len(job.arm) else job.weights
        found.append((weights, neural_linear.packed([head]).reshape(head.shape)))
    return found


def _padded(job: Job, size: int) -> Job:
    fill = size - len(job.arm)
    fields = (np.pad(job.inputs, ((0, fill), (0, 0))), np.pad(job.arm, (0, fill)))
    return job._replace(inputs=fields[0], arm=fields[1], target=np.pad(job.target, (0, fill)))


@functools.partial(jax.jit, static_argnames="units")
def _fit(
    inputs: Array, arm: Array, target: Array, weights: Array, head: Array,
    count: Array, keys: Array, steps: Array, *, units: int,
) -> list[Array]:  # fmt: skip
    one = functools.partial(_fit_one, units=units)
    fitted: list[Array] = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, 0, None))(
        inputs, arm, target, weights, head, count, keys, steps
    )
    return fitted


def _fit_one(
    inputs: Array, arm: Array, target: Array, weights: Array, head: Array,
    count: Array, key: Array, steps: Array, *, units: int,
) -> list[Array]:  # fmt: skip
    """The layers of one network, and its last one (A, P), after ``steps`` steps of Adam.

    The rate falls as a cosine.
    """
    network = Network(units, head.shape[0])
    rate_at = optax.adamw(1.0, weight_decay=DECAY / RATE)

    def loss(parameters: Any, rows: Array) -> Array:
        guess: Any = network.apply({"params": parameters}, inputs[rows])
        mine = jnp.take_along_axis(guess, arm[rows, None], axis=1)[:, 0]
        return jnp.mean((mine - target[rows]) ** 2)

    def step(number: Array, carried: Any) -> Any:
        parameters, memory = carried
        rows = jax.random.randint(jax.random.fold_in(key, number), (ROWS,), 0, count)
        slope = jax.grad(loss)(parameters, rows)
        change, memory = rate_at.update(slope, memory, parameters)
        rate = RATE * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps)).astype(jnp.float32)
        change = jax.tree.map(lambda part: part * rate, change)
        return optax.apply_updates(parameters, change), memory

    first = _parameters(weights, head, inputs=inputs.shape[1], units=units)
    fitted, _ = jax.lax.fori_loop(0, steps, step, (first, rate_at.init(first)))
    layers = (fitted["Dense_0"], fitted["Dense_1"])
    last = jnp.concatenate([fitted["Dense_2"]["bias"][:, None], fitted["Dense_2"]["kernel"].T], 1)
    return [*(layer[name] for layer in layers for name in ("kernel", "bias")), last]


def _parameters(weights: Array, head: Array, *, inputs: int, units: int) -> dict[str, Any]:
    """The stored weights and a last layer (A, P) as Flax names them."""
    real = weights.astype(jnp.float32) / jnp.float32(1 << WEIGHT_BITS)
    one, first, two, second = neural_linear.unpacked(real, inputs=inputs, units=units)
    return {
        "Dense_0": {"kernel": one, "bias": first},
        "Dense_1": {"kernel": two, "bias": second},
        "Dense_2": {"kernel": head[:, 1:].T, "bias": head[:, 0]},
    }


def fit_epinet(job: EpinetJob, seed: int, *, units: int) -> tuple[list[Array], Array, Array, Array]:
    """The fitted layers, last layer (A, P), and the epinet's (P + K, E) and (A, K, E)."""
    jax_backend()
    rows = len(job.arm)
    size = SMALLEST
    while size < rows:
        size *= 8
    padding = ((0, size - rows), (0, 0))
    names = ("inputs", "arm", "target", "offset")
    parts: Any = {n: np.pad(getattr(job, n), padding[: getattr(job, n).ndim]) for n in names}
    steps = int(np.clip(PASSES * rows // ROWS, FEWEST, MOST))
    fields: Any = jax.tree.map(jnp.asarray, job._replace(**parts))
    layers, *others = _fit_epinet(
        fields, jnp.asarray(rows, jnp.int32), jax.random.key(seed), steps, units=units
    )
    head, inner, outer = (np.asarray(part) for part in others)
    return [np.asarray(part) for part in layers], head, inner, outer


@functools.partial(jax.jit, static_argnames="units")
def _fit_epinet(job: EpinetJob, count: Array, key: Array, steps: Array, *, units: int) -> Any:
    """As :func:`_fit_one`; each row of a step comes with an index of its own."""
    real = job.weights.astype(jnp.float32) / jnp.float32(1 << WEIGHT_BITS)
    layers = neural_linear.unpacked(real, inputs=job.inputs.shape[1], units=units)
    rate_at = optax.adamw(1.0, weight_decay=DECAY / RATE)

    def loss(parameters: Any, rows: Array, index: Array) -> Array:
        (one, first, two, second), head, inner, outer = parameters
        x = job.inputs[rows]
        z = linen.relu(linen.relu(x @ one + first) @ two + second)
        columns = jnp.concatenate([jnp.ones_like(x[:, :1]), x, z], axis=1)
        arm = job.arm[rows]
        mean = (columns * head[arm]).sum(axis=1)
        # What the epinet learns leaves the network's features alone.
        seen = jnp.concatenate([jax.lax.stop_gradient(columns), index], axis=1)
        adds = jnp.einsum("be,bke,bk->b", linen.relu(seen @ inner), outer[arm], index)
        missed = mean + adds - job.target[rows] + (index * job.offset[rows]).sum(axis=1)
        return jnp.mean(missed**2)

    def step(number: Array, carried: Any) -> Any:
        parameters, memory = carried
        which, drawn = jax.random.split(jax.random.fold_in(key, number))
        rows = jax.random.randint(which, (ROWS,), 0, count)
        index = jax.random.normal(drawn, (ROWS, job.offset.shape[1]), jnp.float32)
        change, memory = rate_at.update(jax.grad(loss)(parameters, rows, index), memory, parameters)
        rate = RATE * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps)).astype(jnp.float32)
        change = jax.tree.map(lambda part: part * rate, change)
        return optax.apply_updates(parameters, change), memory

    first = (layers, job.head, job.inner, job.outer)
    return jax.lax.fori_loop(0, steps, step, (first, rate_at.init(first)))[0]
