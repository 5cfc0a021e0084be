"""Rows of about the same length, laid side by side: what the alternating models work on.

Rows of a sparse matrix are sorted into classes of length (two to a doubling), filled up to their
class's length, and cut into blocks of a bounded number of entries. So every block of a class has
one shape, is compiled once, and fits the cache of a core. What fills up points to a row behind the
last, which callers keep at zero: it adds nothing to any sum.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bandits.recommender.interactions import Rows
from bandits.types import Array

#: Entries of a block. On a CPU as many as stay in a core's cache with 64 factors; an
#: accelerator wants its blocks large.
ENTRIES_CPU, ENTRIES_GPU = 1 << 13, 1 << 20
#: The shortest class of rows, and how many classes there are to a doubling: one below so many
#: entries, where compiling takes longer than computing.
SHORTEST, PER_OCTAVE, FEW = 16, 2, 1 << 20


class Block(NamedTuple):
    """Some rows of one class.

    Attributes:
        row: (B,) int32, which rows; R where there is none.
        index: (B, L) int32, their columns; C where there is none.
        value: (B, L) float32, 0 where there is none.
        ridge: (B,) float32, what each adds to the diagonal of its equations; 1 where there is none.
    """

    row: Array
    index: Array
    value: Array
    ridge: Array


def blocks(rows: Rows, ridge: NDArray[Any], *, entries: int | None = None) -> list[Block]:
    """All rows that have entries, each in one block; ``ridge`` is (R,)."""
    if entries is None:
        entries = ENTRIES_CPU if jax.default_backend() == "cpu" else ENTRIES_GPU
    degree, shorter, found = rows.degree, 0, []
    for length in _lengths(int(degree.max(initial=0)), _per_octave(rows)):
        which = np.flatnonzero((degree > shorter) & (degree <= length))
        size, shorter = max(1, entries // length), length
        for first in range(0, len(which), size):
            part = which[first : first + size]
            found.append(_block(rows, ridge, part, (size, length)))
    return found


def updated(
    solve: Callable[..., Array], x: Array, y: Array, of_rows: list[Block], *arguments: Any
) -> Array:
    """The table ``x`` (R + 1, K) after each block's rows were solved against ``y`` (C + 1, K).

    ``solve(now (B, K), theirs (B, L, K), block, *arguments)`` gives the new rows. It does not see
    the tables, so that what is compiled for it serves customers, items and every later refit.
    """
    for block in of_rows:
        fresh = solve(_taken(x, block.row), _taken(y, block.index), block, *arguments)
        x = _put(x, block.row, fresh)
    return x


@jax.jit
def _taken(table: Array, index: Array) -> Array:
    return table[index]


@functools.partial(jax.jit, donate_argnums=0)
def _put(table: Array, row: Array, fresh: Array) -> Array:
    return table.at[row].set(fresh)


def padded(table: Array) -> Array:
    """A table (R, K) with the row of zeros behind the last that filling up points to."""
    return jnp.concatenate([table, jnp.zeros_like(table[:1])])


def emptied(table: Array) -> Array:
    """A padded table (R + 1, K) whose last row is zero again."""
    return table.at[-1].set(0.0)


def _per_octave(rows: Rows) -> int:
    return 1 if len(rows.column) < FEW else PER_OCTAVE


def _lengths(most: int, per_octave: int) -> Iterator[int]:
    for step in itertools.count():
        yield (length := int(np.ceil(SHORTEST * 2.0 ** (step / per_octave))))
        if length >= most:
            return


def _block(
    rows: Rows, ridge: NDArray[Any], which: NDArray[np.intp], shape: tuple[int, int]
) -> Block:
    size, length = shape
    degree = rows.degree[which]
    inside = np.arange(length) < degree[:, None]
    entry = (rows.start[which][:, None] + np.arange(length))[inside]
    row = np.full(size, len(rows.start) - 1, np.int32)
    index = np.full(shape, rows.columns, np.int32)
    value = np.zeros(shape, np.float32)
    own = np.ones(size, np.float32)
    row[: len(which)], own[: len(which)] = which, ridge[which]
    index[: len(which)][inside] = rows.column[entry]
    value[: len(which)][inside] = rows.value[entry]
    return Block(*map(jnp.asarray, (row, index, value, own)))
