"""The JAX half of :mod:`bandits.backend`, in a module of its own so that only it names JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bandits.backend import Backend
from bandits.types import Array


def backend() -> Backend:
    """The JAX namespace with 64-bit mode switched on (for the whole process: JAX has one)."""
    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    return Backend("jax", jnp, _scatter_add, jax.jit, _map_rows)


def _scatter_add(zeros: Array, index: Array, values: Array) -> Array:
    return zeros.at[index].add(values)


def _map_rows(function: Callable[..., Array], arrays: tuple[Any, ...], size: int) -> Array:
    return jax.lax.map(lambda row: function(*(x[None] for x in row))[0], arrays, batch_size=size)
