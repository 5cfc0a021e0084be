"""What a decision by contexts computes for every row, compiled by Numba for the machine it runs on.

Plain loops over numbers, in one order, and without the liberties that fast maths takes: a row gives
the same bits alone and among others. Importing Numba takes half a second and 50 MB, so whoever
calls these imports the module with the first such decision, and not at the start.

The first call after an installation compiles for a second or two; what it made is kept beside the
module, or in the user's cache, and read from there in a tenth of a second. Where neither can be
written, every process compiles for itself.

Letters: ``B`` rows, ``A`` arms, ``P`` columns of a design, else as in :mod:`bandits.types`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def compiled(function: Compiled) -> Compiled:
    """A function of numbers and arrays as machine code, which the disk keeps where it can."""
    make = functools.partial(numba.njit, error_model="numpy", nogil=True)
    try:
        return cast(Compiled, make(cache=True)(function))
    except RuntimeError:  # there is no place to keep it
        return cast(Compiled, make()(function))


@compiled
def scores(x: Floats, mean: Floats, root: Floats, offset: float, noise: float, out: Floats) -> None:
    """Means and scales of linear arms: ``x·mean + offset`` and ``noise √(x root rootᵀ xᵀ)``.

    Args:
        x: (B, P) rows.
        mean: (A, P) coefficients.
        root: (A, P, F) factors; those with as many columns as rows are lower triangular.
        offset: what is added to every mean.
        noise: what multiplies every scale.
        out: (2, B, A), is filled with means and scales; the latter are above 0.
    """
    rows, factors = len(x), root.shape[2]
    # Each row has an array of its own: within one they might overlap, for all the compiler knows.
    a, b, c, d = np.empty(factors), np.empty(factors), np.empty(factors), np.empty(factors)
    for row in range(0, rows, 4):
        for arm in range(len(mean)):
            if row + 4 <= rows:
                # Four at a time read a factor once.
                _four(
                    x[row : row + 4], mean[arm], root[arm], a, b, c, d, out[:, row : row + 4, arm]
                )
            else:
                for single in range(row, rows):
                    _one(x[single], mean[arm], root[arm], a, out[:, single, arm])
    for row in range(rows):
        for arm in range(len(mean)):
            out[0, row, arm] += offset
            out[1, row, arm] = math.sqrt(max(out[1, row, arm], 1e-300)) * noise


@compiled
def scores_alone(
    segment: int, features: Integers, one: int, mean: Floats, root: Floats, offset: float,
    noise: float, out: Floats,
) -> None:  # fmt: skip
    """:func:`scores` of one row, from the features (D,) that its design ends with, in 1 / ``one``.

    Before them it has an intercept and, if there are more, columns for the segments but the first.
    """
    x = np.zeros((1, mean.shape[1]))
    first = x.shape[1] - len(features)
    x[0, segment] = x[0, 0] = 1.0
    for place in range(len(features)):
        x[0, first + place] = features[place] / one
    scores(x, mean, root, offset, noise, out)


@compiled
def _one(x: Floats, mean: Floats, root: Floats, a: Floats, out: Floats) -> None:
    """The mean and the squared scale (2,) of one row x (P,) and one arm, in their own units."""
    width, factors = root.shape
    a[:] = 0.0
    total, square = 0.0, 0.0
    for column in range(width):
        factor = root[column]
        for place in range(column + 1 if factors == width else factors):
            a[place] += x[column] * factor[place]
        total += x[column] * mean[column]
    for place in range(factors):
        square += a[place] * a[place]
    out[0], out[1] = total, square


@compiled
def _four(
    x: Floats, mean: Floats, root: Floats, a: Floats, b: Floats, c: Floats, d: Floats, out: Floats
) -> None:
    """The same (2, 4) of rows x (4, P), in the same order of sums."""
    width, factors = root.shape
    a[:] = 0.0
    b[:] = 0.0
    c[:] = 0.0
    d[:] = 0.0
    means, squares = (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)
    for column in range(width):
        xa, xb, xc, xd, factor = (
            x[0, column],
            x[1, column],
            x[2, column],
            x[3, column],
            root[column],
        )
        for place in range(column + 1 if factors == width else factors):
            by = factor[place]
            a[place] += xa * by
            b[place] += xb * by
            c[place] += xc * by
            d[place] += xd * by
        by = mean[column]
        means = (means[0] + xa * by, means[1] + xb * by, means[2] + xc * by, means[3] + xd * by)
    for place in range(factors):
        squares = (
            squares[0] + a[place] * a[place], squares[1] + b[place] * b[place],
            squares[2] + c[place] * c[place], squares[3] + d[place] * d[place],
        )  # fmt: skip
    for row in range(4):
        out[0, row], out[1, row] = means[row], squares[row]


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
def quantise(values: Floats, centres: Floats, scales: Floats, one: float, out: Integers) -> float:
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
