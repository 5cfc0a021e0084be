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
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numpy.typing import NDArray

from bandits.features import ONE
from bandits.types import FEATURE_LIMIT

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


#: Inlined before all else: arrays that are handed to a function of its own have their references
#: counted, which takes as long as a loop over a few arms.
within = numba.njit(error_model="numpy", nogil=True, inline="always")
#: So many numbers are worked on at once where that is written out, and so many of such sums.
LANES, TOGETHER = 8, 4
#: Fewer rows than these take longer side by side, the last repeated, than one after the other.
FEW = 3
#: The logarithm of 2 in two parts, of which the first has so few bits that its products are exact.
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.0 / math.log(2.0), 0.693147180369123816490, 1.90821492927058770e-10


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
    (rows, width), arms, long = x.shape, mean.shape[1], root.shape[1]
    columns, along = np.empty((width, LANES)), np.empty((long + TOGETHER, LANES))
    middles, squares = np.empty((arms + TOGETHER, LANES)), np.empty(LANES)
    alone = np.empty(long)
    for begin in range(0, rows, LANES):
        count = min(LANES, rows - begin)
        if count < FEW:
            for row in range(begin, rows):
                _project(x[row], root, arms, alone)
                _score(x[row], mean, alone, offset, noise, out[:, row])
            continue
        for column in range(width):
            for lane in range(LANES):
                columns[column, lane] = x[begin + min(lane, count - 1), column]
        _project_lanes(columns, mean, arms, middles)
        _project_lanes(columns, root, arms, along)
        for arm in range(arms):
            squares[:] = 0.0
            for place in range(arm, long, arms):
                for lane in range(LANES):
                    squares[lane] += along[place, lane] * along[place, lane]
            for lane in range(count):
                out[0, begin + lane, arm] = middles[arm, lane] + offset
                out[1, begin + lane, arm] = _scale(squares[lane], noise)


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


@within
def _project_lanes(columns: Floats, root: Floats, arms: int, out: Floats) -> None:
    """Set ``out`` (F A, LANES) to what `_project` does for rows side by side (P, LANES).

    With the same sums in the same order: what it adds where a triangle has ended is nothing.
    """
    width, long = root.shape
    for place in range(0, long, TOGETHER):
        first = place // arms if width * arms == long else 0
        _sum_lanes(columns, root, first, width, place, long, out)


def _lanes_summed(
    _typing: Any, columns: Any, root: Any, first: Any, width: Any, place: Any, long: Any, out: Any
) -> Any:
    """Sum ``columns`` (P, LANES) times ``root`` (P, long) from a column on, for `TOGETHER` places.

    Written for LLVM, which would not keep the sums in registers.
    """
    return types.void(columns, root, first, width, place, long, out), _sum


def _sum(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    _, _, first, width, place, long, _ = values
    columns, root, out = _starts(context, builder, signature, values)
    whole, zero = ir.IntType(64), ir.Constant(_EIGHT, [0.0] * LANES)
    one = ir.Constant(whole, 1)
    places = [builder.add(place, ir.Constant(whole, more)) for more in range(TOGETHER)]
    on_stack: Any = cgutils.alloca_once_value
    sums = [on_stack(builder, zero) for _ in places]  # where it stores zeros, with every call
    with cgutils.for_range_slice(builder, first, width, one, whole) as (column, _):
        x = builder.load(_eight(builder, columns, builder.mul(column, _LANES)), align=8)
        row = builder.mul(column, long)
        for total, at in zip(sums, places, strict=True):
            # Beyond the last place it is summed again, for a place of ``out`` that nobody reads.
            inside = builder.icmp_signed("<", at, long)
            at = builder.select(inside, at, builder.sub(long, one))
            by = _each(builder, builder.load(builder.gep(root, [builder.add(row, at)])))
            builder.store(builder.fadd(builder.load(total), builder.fmul(x, by)), total)
    for total, at in zip(sums, places, strict=True):
        place = _eight(builder, out, builder.mul(at, _LANES))
        builder.store(builder.load(total), place, align=8)
    return context.get_dummy_value()


_sum_lanes: Any = intrinsic(_lanes_summed)
_EIGHT = ir.VectorType(ir.DoubleType(), LANES)
_LANES = ir.Constant(ir.IntType(64), LANES)


def _starts(context: Any, builder: Any, signature: Any, values: Any) -> Iterator[Any]:
    """Return where the arrays among some values begin, all of whose elements lie in a row."""
    for kind, value in zip(signature.args, values, strict=True):
        if isinstance(kind, types.Array):
            if kind.layout != "C" or kind.dtype != types.float64:
                raise TypeError(f"an array of float64 in a row is expected, not {kind}")
            yield context.make_array(kind)(context, builder, value).data


def _each(builder: Any, value: Any) -> Any:
    """Return a vector of one number."""
    nothing = ir.Constant(_EIGHT, [0.0] * LANES)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return _picked(builder, one, one, [0] * LANES)


def _eight(builder: Any, array: Any, place: Any) -> Any:
    """Return where a vector lies in an array."""
    return builder.bitcast(builder.gep(array, [place]), _EIGHT.as_pointer())


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
        squares[arm] = _scale(squares[arm], noise)


@within
def _scale(square: float, noise: float) -> float:
    return math.sqrt(max(square, 1e-300)) * noise


@compiled
def best(
    mean: Floats, scale: Floats, mask: Flags, starts: Floats, end: float, steps: Floats,
    cubics: Floats, cells: float, middle: float, points: int, tolerance: float, out: Floats,
) -> None:  # fmt: skip
    """P(arm is best) of rows (B, A) by :mod:`bandits.posteriors.tabled`, where ``mask`` is True.

    Args:
        mean: (B, A).
        scale: (B, A).
        mask: (B, A).
        starts: (A + 1,) where an arm begins that is one of so many, in scales from its middle.
        end: where an arm ends.
        steps: (A + 1,) distances between points for so many eligible arms, in scales.
        cubics: (cells, 4) coefficients of log F in every cell of the table, from the constant on.
        cells: of the table per scale.
        middle: cells of the table below an arm's mean.
        points: most points of a row, a multiple of `LANES`.
        tolerance: how far from one a row's sum may be, which it is divided by; 0 leaves it.
        out: (B, A), is filled; NaN in rows that it does not serve.
    """
    rows, arms = mean.shape
    slopes, logs, bits = np.empty((arms, points)), np.empty(points), np.empty(points, np.int64)
    for row in range(rows):
        low, span, step = _range(mean, scale, mask, row, starts, end, steps)
        if not span < (points - 1 - LANES) * step:
            for arm in range(arms):
                out[row, arm] = np.nan
            continue
        count = (int(span / step) + 1) // LANES * LANES + LANES
        for place in range(count):
            logs[place] = 0.0
        for arm in range(arms):
            if mask[row, arm]:
                begin = (low - mean[row, arm]) / scale[row, arm] * cells + middle
                _read(cubics, begin, cells * step / scale[row, arm], count, logs, slopes, arm)
        _exponentiate(logs, count, bits)
        whole = 0.0
        for arm in range(arms):
            total = 0.0
            if mask[row, arm]:
                for place in range(count):
                    total += slopes[arm, place] * logs[place]
                total *= cells * step / scale[row, arm]
            out[row, arm] = total
            whole += total
        if tolerance:
            whole = whole if abs(whole - 1.0) <= tolerance else np.nan
            for arm in range(arms):
                out[row, arm] /= whole


@within
def _range(
    mean: Floats, scale: Floats, mask: Flags, row: int, starts: Floats, end: float, steps: Floats
) -> tuple[float, float, float]:
    """Where a row's points begin, how far they go, and their distance; NaN if it has none."""
    count, sound = 0, True
    for arm in range(mean.shape[1]):
        count += mask[row, arm]
    low, high, least, narrow = -np.inf, -np.inf, np.inf, np.inf
    for arm in range(mean.shape[1]):
        if mask[row, arm]:
            middle, wide = mean[row, arm], scale[row, arm]
            sound = sound and 0.0 < wide < np.inf and abs(middle) < np.inf
            low = max(low, middle + starts[1] * wide)
            least = min(least, middle + starts[count] * wide)
            high = max(high, middle + end * wide)
    # Below the one some arm has not begun; below the other none has come far, and their product is
    # as little.
    low = max(low, least)
    for arm in range(mean.shape[1]):
        # An arm that ends below cannot be best, and need not be followed closely.
        if mask[row, arm] and mean[row, arm] + end * scale[row, arm] > low:
            narrow = min(narrow, scale[row, arm])
    return low, high - low if sound else np.nan, steps[count] * narrow


@within
def _read(
    cubics: Floats, begin: float, step: float, count: int, logs: Floats, slopes: Floats, arm: int
) -> None:
    """Add log F at evenly spaced places in cells to ``logs``, and set its slope per cell.

    ``count`` is a multiple of `LANES`. Beyond the table is the last cell, where nothing changes
    any more.
    """
    last, row = len(cubics) - 1.0, arm * slopes.shape[1]
    for place in range(0, count, LANES):
        _read_lanes(cubics, begin, step, last, logs, slopes, row, place)


def _lanes_read(
    _typing: Any, cubics: Any, begin: Any, step: Any, last: Any, logs: Any, slopes: Any, row: Any,
    place: Any,
) -> Any:  # fmt: skip
    """What `_read` does for `LANES` places from ``place`` on; ``slopes`` are set from ``row`` on.

    Written for LLVM: it makes no such code of a loop, as places are far apart in the table. A cell
    is loaded whole, and eight of them are transposed between registers.
    """
    return types.void(cubics, begin, step, last, logs, slopes, row, place), _read_cells


_read_lanes: Any = intrinsic(_lanes_read)


def _read_cells(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    _, begin, step, last, _, _, row, place = values
    cubics, logs, slopes = _starts(context, builder, signature, values)
    add, times = builder.fadd, builder.fmul
    begin, step, last, start = (
        _each(builder, one) for one in (begin, step, last, builder.sitofp(place, ir.DoubleType()))
    )
    zero = ir.Constant(_EIGHT, [0.0] * LANES)
    there = add(start, ir.Constant(_EIGHT, [float(lane) for lane in range(LANES)]))
    there = add(begin, times(step, there))
    there = builder.select(builder.fcmp_ordered(">", there, zero), there, zero)
    there = builder.select(builder.fcmp_ordered("<", there, last), there, last)
    cell = builder.fptosi(there, ir.VectorType(ir.IntType(32), LANES))
    x = builder.fsub(there, builder.sitofp(cell, _EIGHT))
    zeroth, first, second, third = _cells(builder, cubics, cell)
    cube = times(third, x)
    square = add(second, cube)
    log = add(times(add(times(square, x), first), x), zeroth)
    logs = _eight(builder, logs, place)
    builder.store(add(builder.load(logs, align=8), log), logs, align=8)
    slope = add(times(add(add(square, square), cube), x), first)
    builder.store(slope, _eight(builder, slopes, builder.add(row, place)), align=8)
    return context.get_dummy_value()


def _cells(builder: Any, cubics: Any, cell: Any) -> Iterator[Any]:
    """Load the rows of a table (cells, 4) that a vector names, and give it column by column."""
    four, rows = ir.VectorType(ir.DoubleType(), 4).as_pointer(), []
    for lane in range(LANES):
        one = builder.extract_element(cell, ir.Constant(ir.IntType(32), lane))
        start = builder.shl(builder.sext(one, ir.IntType(64)), ir.Constant(ir.IntType(64), 2))
        rows.append(builder.load(builder.bitcast(builder.gep(cubics, [start]), four), align=8))
    a, b, c, d = (_picked(builder, rows[at], rows[at + 4], list(range(8))) for at in range(4))
    for column in range(4):
        odd, late = column % 2, column // 2 * 2
        turns = [at + odd for even in range(0, LANES, 2) for at in (even, LANES + even)]
        ab, cd = _picked(builder, a, b, turns), _picked(builder, c, d, turns)
        yield _picked(builder, ab, cd, [late + at for at in (0, 1, 8, 9, 4, 5, 12, 13)])


def _picked(builder: Any, one: Any, two: Any, places: list[int]) -> Any:
    """Return the elements of two vectors, one after the other, at these places."""
    return builder.shuffle_vector(
        one, two, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    )


@within
def _exponentiate(logs: Floats, count: int, bits: Integers) -> None:
    """Set numbers that are not above 0 to what they are the logarithms of, to 2e-16 of it.

    As ``2**k`` times a series of what is left, of Taylor's coefficients. The C library's takes four
    times as long, and differs from one to the next.
    """
    for place in range(count):
        log = max(logs[place], -700.0)
        doubled = np.rint(log * _LOG2_E)
        x = log - doubled * _LN2_HIGH - doubled * _LN2_LOW
        two = x * x
        four = two * two
        first = (1.0 + x) + two * (1 / 2 + x * (1 / 6))
        second = (1 / 24 + x * (1 / 120)) + two * (1 / 720 + x * (1 / 5040))
        third = (1 / 40320 + x * (1 / 362880)) + two * (1 / 3628800 + x * (1 / 39916800))
        logs[place] = first + four * (second + four * (third + four * (1 / 479001600)))
        bits[place] = (int(doubled) + 1023) << 52
    powers = bits.view(np.float64)
    for place in range(count):
        logs[place] *= powers[place]


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


@compiled
def quantise_columns(
    values: Floats, centres: Floats, scales: Floats, one: int, limit: int, out: Integers
) -> None:
    """Set ``out`` (B, D) to ``(values - centres) / scales`` of columns (D, B) in 1 / ``one``.

    Rounded to the next even, cut off at ±``limit``; what is not a number is 0.
    """
    for place in range(len(values)):
        centre, scale = centres[place], scales[place]
        for row in range(len(out)):
            scaled = np.rint((values[place, row] - centre) / scale * one)
            scaled = scaled if scaled == scaled else 0.0
            out[row, place] = int(min(max(scaled, -float(limit)), float(limit)))


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
    zero, whole = np.zeros(1), np.zeros((1, 1), np.int64)
    quantise(zero, zero, np.ones(1), ONE, whole[0])
    quantise_columns(np.zeros((1, 1)), zero, np.ones(1), ONE, FEATURE_LIMIT, whole)
