"""The network of :mod:`bandits.customers.propensity`: Flax defines it, optax fits it.

In a module of its own, imported by name, so that serving reaches neither. Rows are filled up to a
power of two with rows of no weight, so that the folds of a cross-validation compile once.

Source: Loshchilov and Hutter, ICLR 2019 (decoupled decay).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import linen
from numpy.typing import NDArray

from bandits.backend import jax_backend
from bandits.types import Array

Floats = NDArray[np.float64]

#: Rows of a step, its greatest rate, and steps: so many passes, within bounds.
ROWS, RATE, PASSES, FEWEST, MOST = 256, 3e-3, 15, 300, 3000


class Odds(linen.Module):
    """Two layers of rectified units, and the log odds."""

    units: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        """The log odds (R,) of inputs (R, D)."""
        z = linen.relu(linen.Dense(self.units)(x))
        z = linen.relu(linen.Dense(self.units)(z))
        return linen.Dense(1)(z)[:, 0]


def layers(
    x: Floats, y: Floats, weight: Floats, *, units: float, decay: float, seed: int
) -> tuple[Floats, Floats, Floats]:
    """The fitted layers (D + 1, U), (U + 1, U) and (U + 1,), the level of each first."""
    jax_backend()  # 64-bit mode, so that a seed says the same whoever called first
    count = len(y)
    fill = (1 << (count - 1).bit_length()) - count
    parts = [np.pad(part, ((0, fill), *[(0, 0)] * (part.ndim - 1))) for part in (x, y, weight)]
    steps = int(np.clip(PASSES * count // ROWS, FEWEST, MOST))
    real = [jnp.asarray(part, jnp.float32) for part in parts]
    found = _fit(*real, count, jax.random.key(seed), steps, decay, units=int(units))
    stacked = [
        np.concatenate([np.asarray(one["bias"])[None], np.asarray(one["kernel"])]).astype(
            np.float64
        )
        for one in (found["Dense_0"], found["Dense_1"], found["Dense_2"])
    ]
    return stacked[0], stacked[1], stacked[2][:, 0]


@functools.partial(jax.jit, static_argnames="units")
def _fit(
    x: Array, y: Array, weight: Array, count: Array, key: Array, steps: Array, decay: Array, *,
    units: int,
) -> Any:  # fmt: skip
    """The parameters after ``steps`` steps of Adam, whose rate falls as a cosine."""
    network = Odds(units)
    adam = optax.scale_by_adam()

    def loss(parameters: Any, rows: Array) -> Array:
        score: Any = network.apply({"params": parameters}, x[rows])
        each = jnp.logaddexp(0.0, score) - y[rows] * score
        return (weight[rows] * each).mean()

    def step(number: Array, carried: Any) -> Any:
        parameters, memory = carried
        rows = jax.random.randint(jax.random.fold_in(key, number), (ROWS,), 0, count)
        change, memory = adam.update(jax.grad(loss)(parameters, rows), memory)
        rate = (RATE * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps))).astype(jnp.float32)
        shrink = (1.0 - rate * decay).astype(jnp.float32)
        moved = jax.tree.map(lambda part, by: shrink * part - rate * by, parameters, change)
        return moved, memory

    first = network.init(key, x[:1])["params"]
    first = jax.tree.map(lambda part: part.astype(jnp.float32), first)
    return jax.lax.fori_loop(0, steps, step, (first, adam.init(first)))[0]
