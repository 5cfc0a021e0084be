"""Two array namespaces for one source of the maths: numpy (float64, CPU) and JAX (x64).

Functions of the maths take a :class:`Backend`. Serving processes use :func:`numpy_backend` and
never import JAX; :func:`jax_backend` imports it, and switches its 64-bit mode on, because in
float32 P(best) is wrong by up to 0.11 (see README.md).
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bandits.types import Array


class Backend(NamedTuple):
    """The functions that the two namespaces do not share by name.

    Attributes:
        name: "numpy" or "jax".
        xp: the array namespace.
        scatter_add: ``(zeros, index, values) -> array`` with ``zeros[index] += values`` summed
            over repeated indices; 1-D.
        jit: compiles a pure function (the identity for numpy).
        map_rows: ``(function, arrays, size) -> array``: a row-wise function over arrays (R, ...),
            at most ``size`` rows at a time, to bound memory.
    """

    name: str
    xp: Any
    scatter_add: Callable[[Array, Array, Array], Array]
    jit: Callable[[Callable[..., Array]], Callable[..., Array]]
    map_rows: Callable[[Callable[..., Array], tuple[Any, ...], int], Array]


def numpy_backend() -> Backend:
    """The reference namespace: numpy, float64 on the CPU."""
    return _NUMPY


@functools.cache
def jax_backend() -> Backend:
    """The JAX namespace, 64 bit.

    Importing JAX takes half a second and 150 MB, so it happens here, and by name, so that the
    import checker sees that serving code does not reach it.
    """
    backend: Backend = importlib.import_module("bandits.backend_jax").backend()
    return backend


@functools.cache
def kernels() -> Any:
    """The compiled loops (:mod:`bandits.kernels`), which are imported with their first use."""
    return importlib.import_module("bandits.kernels")


def named(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        ValueError: the name is neither "numpy" nor "jax".
    """
    if name == "numpy":
        return numpy_backend()
    if name == "jax":
        return jax_backend()
    raise ValueError(f"backend must be 'numpy' or 'jax', not {name!r}")


def namespace(array: Array) -> Any:
    """The namespace (numpy or jax.numpy) that ``array`` belongs to; numpy for plain sequences."""
    if isinstance(array, np.ndarray) or not hasattr(array, "__array_namespace__"):
        return np
    return array.__array_namespace__()


def is_traced(*arrays: Array) -> bool:
    """Whether any of the arrays is a JAX tracer, whose values cannot be looked at."""
    jax = sys.modules.get("jax")
    return jax is not None and any(isinstance(a, jax.core.Tracer) for a in arrays)


def require_double(array: Array, *, what: str) -> None:
    """Raise ``TypeError`` unless ``array`` has 64-bit elements (float64 or int64).

    Float32 is refused rather than widened: what was rounded once cannot be mended.
    """
    if np.dtype(array.dtype) not in (np.dtype(np.float64), np.dtype(np.int64)):
        raise TypeError(f"{what} must be float64 or int64, not {array.dtype}")


def _numpy_scatter_add(zeros: Array, index: Array, values: Array) -> Array:
    out = zeros.copy()
    np.add.at(out, index, values)
    return out


def _numpy_map_rows(function: Callable[..., Array], arrays: tuple[Any, ...], size: int) -> Array:
    rows = arrays[0].shape[0]
    pieces = [function(*(x[i : i + size] for x in arrays)) for i in range(0, rows, size)]
    return np.concatenate(pieces)


def _identity(function: Callable[..., Array]) -> Callable[..., Array]:
    return function


_NUMPY = Backend("numpy", np, _numpy_scatter_add, _identity, _numpy_map_rows)
