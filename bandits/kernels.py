"""What a decision by contexts computes for every row, compiled by Numba for the machine it runs on.

Plain loops over numbers, in one order, and without the liberties that fast maths takes: a row gives
the same bits alone and among others. Importing Numba takes half a second and 50 MB, so whoever
calls these imports the module with the first such decision, and not at the start.

The first call after an installation compiles for some seconds (`prepare` does so ahead); what it
made is kept beside the module, or in the user's cache, and read from there in a fraction of one.
Where neither can be written, every process compiles for itself.

Letters: ``B`` rows, ``A`` arms, ``P`` columns of a design, else as in :mod:`bandits.types`.
"""

import contextlib
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numpy.typing import NDArray

from bandits.features import ONE

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])


class Kept(FunctionCache):
    """Machine code on disk, without which everything goes on: what cannot be read is made anew."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what is kept, or None."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception as error:
            warnings.warn(f"machine code cannot be read, and is made anew: {error}", stacklevel=2)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep it, if that can be done; an index that cannot be read gives way to a new one."""
        try:
            try:
                super().save_overload(sig, data)  # type: ignore[no-untyped-call]
            except (pickle.UnpicklingError, EOFError):
                self.flush()  # type: ignore[no-untyped-call]
                super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:
            warnings.warn(f"machine code cannot be kept: {error}", stacklevel=2)


def compiled(function: Compiled) -> Compiled:
    """A function of numbers and arrays as machine code, which the disk keeps where it can."""
    made: Any = numba.njit(error_model="numpy", nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # there is no place to keep it
        made._cache = Kept(function)  # type: ignore[no-untyped-call]
    return cast(Compiled, made)


@compiled
def scores(x: Floats, mean: Floats, root: Floats, offset: float, noise: float, out: Floats) -> None:
    """Means and scales of linear arms: ``x·mean + offset`` and ``noise √(x root rootᵀ xᵀ)``.

    Args:
        x: (B, P) rows.
        mean: (P, A) coefficients.
        root: (P, F A) factors, arm by arm for each of F; where F = P, none after the column's own.
        offset: what is added to every mean.
        noise: what multiplies every scale.
        out: (2, B, A), is filled with means and scales; the latter are above 0.
    """
    rows, long = len(x), root.shape[1]
    # Each row has an array of its own: within one they might overlap, for all the compiler knows.
    a, b, c, d = np.empty(long), np.empty(long), np.empty(long), np.empty(long)
    for row in range(0, rows - 3, 4):
        _project_four(x[row : row + 4], root, mean.shape[1], a, b, c, d)
        _score(x[row], mean, a, offset, noise, out[:, row])
        _score(x[row + 1], mean, b, offset, noise, out[:, row + 1])
        _score(x[row + 2], mean, c, offset, noise, out[:, row + 2])
        _score(x[row + 3], mean, d, offset, noise, out[:, row + 3])
    for row in range(rows - rows % 4, rows):
        _project(x[row], root, mean.shape[1], a)
        _score(x[row], mean, a, offset, noise, out[:, row])


@compiled
def scores_alone(
    segment: int, features: Integers, one: int, mean: Floats, root: Floats, offset: float,
    noise: float, out: Floats,
) -> None:  # fmt: skip
    """:func:`scores` of one row, from the features (D,) that its design ends with, in 1 / ``one``.

    Before them it has an intercept and, if there are more, columns for the segments but the first.
    """
    x = np.zeros((1, len(mean)))
    first = len(mean) - len(features)
    x[0, segment] = x[0, 0] = 1.0
    for place in range(len(features)):
        x[0, first + place] = features[place] / one
    scores(x, mean, root, offset, noise, out)


@compiled
def _project(x: Floats, root: Floats, arms: int, a: Floats) -> None:
    """Set ``a`` (F A,) to x (P,) times the factors."""
    width, long = root.shape
    a[:] = 0.0
    for column in range(width):
        by, factor = x[column], root[column]
        for place in range((column + 1) * arms if width * arms == long else long):
            a[place] += by * factor[place]


@compiled
def _project_four(
    x: Floats, root: Floats, arms: int, a: Floats, b: Floats, c: Floats, d: Floats
) -> None:
    """The same for rows x (4, P), which read a factor once, in the same order of sums."""
    width, long = root.shape
    a[:] = 0.0
    b[:] = 0.0
    c[:] = 0.0
    d[:] = 0.0
    for column in range(width):
        one, two, three, four = x[0, column], x[1, column], x[2, column], x[3, column]
        factor = root[column]
        for place in range((column + 1) * arms if width * arms == long else long):
            by = factor[place]
            a[place] += one * by
            b[place] += two * by
            c[place] += three * by
            d[place] += four * by


@compiled
def _score(
    x: Floats, mean: Floats, along: Floats, offset: float, noise: float, out: Floats
) -> None:
    """Means and scales (2, A) of x (P,), of which ``along`` (F A,) is the product with factors."""
    width, arms = mean.shape
    out[:] = 0.0
    means, squares = out[0], out[1]
    for column in range(width):
        for arm in range(arms):
            means[arm] += x[column] * mean[column, arm]
    for place in range(0, len(along), arms):
        for arm in range(arms):
            squares[arm] += along[place + arm] * along[place + arm]
    for arm in range(arms):
        means[arm] += offset
        squares[arm] = math.sqrt(max(squares[arm], 1e-300)) * noise


@compiled
def best(
    mean: Floats, scale: Floats, mask: Flags, ends: tuple[float, float], steps: Floats,
    cubics: Floats, cells: float, middle: float, points: int, tolerance: float, out: Floats,
) -> None:  # fmt: skip
    """P(arm is best) of rows (B, A) by :mod:`bandits.posteriors.tabled`, where ``mask`` is True.

    Args:
        mean: (B, A).
        scale: (B, A).
        mask: (B, A).
        ends: where an arm begins and ends, in scales from its middle.
        steps: (A + 1,) distances between points for so many eligible arms, in scales.
        cubics: (cells, 4) coefficients of log F in every cell of the table, from the constant on.
        cells: of the table per scale.
        middle: cells of the table below an arm's mean.
        points: most points of a row.
        tolerance: how far from one a row's sum may be, which it is divided by; 0 leaves it.
        out: (B, A), is filled; NaN in rows that it does not serve.
    """
    rows, arms = mean.shape
    slopes, logs = np.empty((arms, points)), np.empty(points)
    for row in range(rows):
        low, span, step = _range(mean[row], scale[row], mask[row], ends, steps)
        if not span < (points - 1) * step:
            out[row] = np.nan
            continue
        count = int(span / step) + 2
        logs[:count] = 0.0
        for arm in range(arms):
            if mask[row, arm]:
                slope = cells * span / (count - 1) / scale[row, arm]
                begin = (low - mean[row, arm]) / scale[row, arm] * cells + middle
                _read(cubics, begin, slope, logs[:count], slopes[arm])
        for place in range(count):
            logs[place] = math.exp(logs[place])
        whole = 0.0
        for arm in range(arms):
            total = 0.0
            if mask[row, arm]:
                for place in range(count):
                    total += slopes[arm, place] * logs[place]
                total *= cells * span / (count - 1) / scale[row, arm]
            out[row, arm] = total
            whole += total
        if tolerance:
            out[row] /= whole if abs(whole - 1.0) <= tolerance else np.nan


@compiled
def _range(
    mean: Floats, scale: Floats, mask: Flags, ends: tuple[float, float], steps: Floats
) -> tuple[float, float, float]:
    """Where a row's points begin, how far they go, and their distance; NaN if it has none."""
    low, high, narrow, count = -np.inf, -np.inf, np.inf, 0
    for arm in range(len(mean)):
        if mask[arm]:
            if not (0.0 < scale[arm] < np.inf and abs(mean[arm]) < np.inf):
                return np.nan, np.nan, np.nan
            count += 1
            low = max(low, mean[arm] + ends[0] * scale[arm])
            high = max(high, mean[arm] + ends[1] * scale[arm])
    for arm in range(len(mean)):
        # An arm that ends below cannot be best, and need not be followed closely.
        if mask[arm] and mean[arm] + ends[1] * scale[arm] > low:
            narrow = min(narrow, scale[arm])
    return low, high - low, steps[count] * narrow


@compiled
def _read(cubics: Floats, begin: float, step: float, logs: Floats, slopes: Floats) -> None:
    """Add log F at evenly spaced places in cells to ``logs``, and set its slope per cell."""
    last = len(cubics) - 1.0
    for place in range(len(logs)):
        # Beyond the table is the last cell, where nothing changes any more.
        there = min(max(begin + step * place, 0.0), last)
        cell = int(there)
        x = there - cell
        zero, one, two, three = (
            cubics[cell, 0], cubics[cell, 1], cubics[cell, 2], cubics[cell, 3],
        )  # fmt: skip
        cube = three * x
        square = two + cube
        logs[place] += (square * x + one) * x + zero
        slopes[place] = (square + square + cube) * x + one


@compiled
def quantise(values: Floats, centres: Floats, scales: Floats, one: int, out: Integers) -> float:
    """Set ``out`` (D,) to ``(values - centres) / scales`` in 1 / ``one``, rounded to the next even.

    Return the greatest in size; where that is infinite, ``out`` is not all set.
    """
    greatest = 0.0
    for place in range(len(values)):
        scaled = np.rint((values[place] - centres[place]) / scales[place] * one)
        if not abs(scaled) < 2.0**53:
            return np.inf
        greatest = max(greatest, abs(scaled))
        out[place] = int(scaled)
    return greatest


def prepare() -> None:
    """Compile, or read, all that a decision calls, with the types that it has there."""
    from bandits import policies
    from bandits.types import Contexts

    policy = policies.make("logistic_thompson", arms=2, segments=1, features=1)
    belief, mask = policy.believe(policy.init()), np.ones((2, 2), dtype=bool)
    rows = Contexts(np.zeros(2, np.int32), np.zeros((2, 1), np.int64))
    policy.probabilities(belief, rows, mask)
    assert policy.single is not None
    policy.single(belief, 0, rows.features[0], mask[0])
    quantise(np.zeros(1), np.zeros(1), np.ones(1), ONE, np.zeros(1, np.int64))
