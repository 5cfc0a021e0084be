"""P(arm is best) for independent arms, by Gauss-Legendre panels.

``p_k = ∫ f_k(y) ∏_{j≠k} F_j(y) dy`` (METHODS §1). The real line is cut at every arm's quantiles,
so each density is smooth on every panel, and each panel carries ``NODES`` Gauss-Legendre nodes.

Only densities are evaluated. The distribution functions come from the same nodes: ``F_j`` at a
node is the sum of the panels before it plus the integral, within the panel, of the polynomial
through the nodes (a constant NODES x NODES matrix). That spares every incomplete beta function:
it is faster than scipy's, and JAX's (which is wrong in the seventh digit) is not needed, so both
backends compute the same numbers and the code lowers for any accelerator.

The cuts of all arms together make work that grows with the square of their number. Beyond ``FEW``
arms a fixed number of cuts is shared by all, placed where the arms that can be best change most
(:func:`_shared_cuts`): time and memory are then linear in the arms.

Where numpy runs, Student t of 30 degrees of freedom and more go by :mod:`bandits.posteriors.graded`
instead, which is six times as fast for ten arms, or, where all of a row are equally and so free
that they are nearly Gaussian, by :mod:`bandits.posteriors.tabled`, which takes a fiftieth of that;
they agree to 1e-9.

Normalisation: each ``F_j`` is divided by its own total. The raw sum ``Σ p_k`` then equals 1 up to
the error of the quadrature, and is the check of it: within ``RAW_TOLERANCE`` the result is divided
by its sum; otherwise (never seen on the tested range) the row falls back to equal shares of the
eligible arms, which is safe to serve. :func:`raw` gives the sums before that.

>>> p = beta(np.array([[2.0, 5.0]]), np.array([[3.0, 3.0]]), np.array([[True, True]]))
>>> p.round(6)
array([[0.19697, 0.80303]])
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from bandits.backend import Backend, numpy_backend, require_double
from bandits.posteriors import graded, tabled
from bandits.posteriors.graded import rule
from bandits.types import Array

#: Gauss-Legendre nodes in each panel.
NODES = 8

#: Largest accepted |Σp - 1| before normalisation.
RAW_TOLERANCE = 1e-6

#: Standard normal abscissae, mapped to each arm's quantiles, at which the line is cut: the outer
#: steps are short so that algebraic tails (Student t, Beta with b < 1 against a better payer) keep
#: a bounded ratio within a panel. Outside lies 1e-10 of an arm's mass.
LEVELS = np.array([0.0, 0.8, 1.6, 2.4, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5])

#: Up to so many arms, the line is cut at the quantiles of all; the work grows with their square.
FEW = 32

#: Cuts of every arm's own where there are more: twice as many, and somewhat further out, because
#: what is missing from one arm's distribution counts as often as there are arms.
FINE = np.sort(np.concatenate([LEVELS, (LEVELS[1:] + LEVELS[:-1]) / 2, [6.75, 7.0]]))

#: The cuts that more arms share start from those of so many, the likely best, and are moved so many
#: times; the logarithm of how likely the best may be to lie below the first of them.
TOP, ROUNDS, LEAST_LOG = 6, 6, -30.0
PANELS = TOP * len(FINE) - 1

#: Elements (rows x arms x nodes) that are held at a time; and how many of one row of many arms, so
#: that they stay within the cache, and below the 128 KiB from which an allocator asks the system
#: for fresh pages every time.
_CHUNK, BLOCK = 1 << 20, 1 << 13

_ALL = slice(None)

_DOUBLE_OR_BOOL = (np.dtype(np.float64), np.dtype(bool))


_RULE = rule(NODES)


def beta(
    a: Array,
    b: Array,
    mask: Array,
    *,
    value: Array | None = None,
    backend: Backend | None = None,
) -> Array:
    """P(arm is best) when arm k pays ``value_k`` times a Beta(a_k, b_k) variable.

    Args:
        a: (R, A) float64 > 0.
        b: (R, A) float64 > 0. Where values differ, keep b >= 1: below that an arm's density is
            infinite where it ends, inside the range of the better payers, and the error grows
            from 1e-7 to 2e-5 at b = 1/2.
        mask: (R, A) bool, True = eligible; at least one per row.
        value: (R, A) float64, > 0 where eligible; None when all arms pay the same.
        backend: the namespace; numpy when None.

    Returns:
        (R, A) float64, a simplex per row, exactly 0 where not eligible.
    """
    backend = backend or numpy_backend()
    arrays = (a, b, mask) if value is None else (a, b, mask, value)
    return _chunked(lambda *xs: _settle(_raw_beta(backend, *xs), xs[2], backend), arrays, backend)


def student(
    mean: Array, scale: Array, freedom: Array, mask: Array, *, backend: Backend | None = None
) -> Array:
    """P(arm is best) when arm k is ``mean_k + scale_k`` times a Student t of ``freedom_k``.

    Args:
        mean: (R, A) float64.
        scale: (R, A) float64 > 0.
        freedom: (R, A) float64 >= 1; ``inf`` gives the Gaussian.
        mask: (R, A) bool, True = eligible; at least one per row.
        backend: the namespace; numpy when None.

    Returns:
        (R, A) float64, a simplex per row, exactly 0 where not eligible.
    """
    return _student(mean, scale, freedom, mask, backend or numpy_backend(), settle=True)


def row(mean: Array, scale: Array, freedom: float, mask: Array) -> Array:
    """As :func:`student` for one row of numpy arrays (A,) of equal freedom, in fewer calls.

    By :mod:`bandits.posteriors.tabled` where that applies: in every bit what the row gets among
    others, and within 1e-8 of what `student` makes of it alone.
    """
    if tabled.applies(freedom, len(mask)):
        p = tabled.shares(mean[None], scale[None], freedom, mask[None], RAW_TOLERANCE)[0]
        if p[0] == p[0]:  # not NaN
            return p
    free = np.full((1, len(mask)), freedom)
    out: Array = student(mean[None], scale[None], free, mask[None])[0]
    return out


def gaussian(mean: Array, sd: Array, mask: Array, *, backend: Backend | None = None) -> Array:
    """P(arm is best) when arm k is Gaussian; arguments as for :func:`student`."""
    backend = backend or numpy_backend()
    freedom = backend.xp.full(mean.shape, backend.xp.inf)
    return student(mean, sd, freedom, mask, backend=backend)


def raw(
    a: Array,
    b: Array,
    mask: Array,
    *,
    value: Array | None = None,
    backend: Backend | None = None,
) -> Array:
    """As :func:`beta`, before the check of the sum and the division by it."""
    backend = backend or numpy_backend()
    arrays = (a, b, mask) if value is None else (a, b, mask, value)
    return _chunked(lambda *xs: _raw_beta(backend, *xs), arrays, backend)


def raw_student(
    mean: Array, scale: Array, freedom: Array, mask: Array, *, backend: Backend | None = None
) -> Array:
    """As :func:`student`, before the check of the sum and the division by it."""
    return _student(mean, scale, freedom, mask, backend or numpy_backend(), settle=False)


def _raw_beta(
    backend: Backend, a: Array, b: Array, mask: Array, value: Array | None = None
) -> Array:
    """Integrates over v = logit(y / max value), in which the tails of every arm are exponential."""
    xp = backend.xp
    a, b = xp.where(mask, a, 1.0), xp.where(mask, b, 1.0)
    levels = _levels(mask)
    mode = xp.log(a / b)[..., None]
    if value is None:
        ratio = None
    else:
        value = xp.where(mask, value, 0.0)
        ratio = xp.where(mask, value / value.max(axis=-1, keepdims=True), 1.0)

    def paid(v: Array, part: slice) -> Array:
        if ratio is None:
            return v
        share = ratio[:, part, None]
        return v + xp.log(share) - xp.log1p((1.0 - share) * xp.exp(v))

    def edges(part: slice) -> Array:
        return paid(mode[:, part] + _logit_offsets(xp, a[:, part], b[:, part], levels), part)

    def logs(v: Array, part: slice, ratio: Array | None) -> Array:
        share = None if ratio is None else ratio[:, part]
        return _log_beta(xp, a[:, part], b[:, part], share, v)

    peak, highest = logs(paid(mode, _ALL), _ALL, ratio), logs(mode, _ALL, None)

    def density(v: Array, part: slice) -> Array:
        return xp.exp(logs(v, part, ratio) - peak[:, part])

    def level(v: Array, part: slice) -> Array:
        if ratio is not None:
            share = ratio[:, part, None]
            rest = 1.0 - (1.0 / share - 1.0) * xp.exp(v)
            v = v - xp.log(share) - xp.log(xp.maximum(rest, 1e-300))
        drop = highest[:, part] - logs(v, part, None)
        return xp.sign(v - mode[:, part]) * xp.sqrt(2.0 * xp.maximum(drop, 0.0))

    return _integrated(backend, _Arms(density, level, edges), mask)


def _log_beta(xp: Array, a: Array, b: Array, ratio: Array | None, v: Array) -> Array:
    """Log density, up to a constant, of v (R, A or 1, N) for each arm: (R, A, N)."""
    a, b = a[..., None], b[..., None]
    ratio = None if ratio is None else ratio[..., None]
    tail = xp.log1p(xp.exp(-xp.abs(v)))
    out = -a * (xp.maximum(-v, 0.0) + tail) - b * (xp.maximum(v, 0.0) + tail)
    if ratio is None:
        return out
    # An arm that pays less than the best payer ends where c e^v = 1.
    over = (1.0 / ratio - 1.0) * xp.exp(v)
    inside = over < 1.0
    return xp.where(inside, out + (b - 1.0) * xp.log1p(-xp.where(inside, over, 0.0)), -xp.inf)


def _logit_offsets(xp: Array, a: Array, b: Array, levels: Array) -> Array:
    """Where the log density of logit θ has fallen by levels²/2 from its mode: (R, A, Q)."""
    drop = xp.asarray(levels[1:] ** 2 / 2)
    a, b = a[..., None], b[..., None]
    left, right = _fall(xp, b, a, drop), _fall(xp, a, b, drop)
    return xp.concatenate([-xp.flip(left, axis=-1), xp.zeros_like(a), right], axis=-1)


def _fall(xp: Array, a: Array, b: Array, drop: Array) -> Array:
    """Solve ``(a+b) log(1 + a/(a+b) (e^δ - 1)) - a δ = drop`` for δ > 0 by Newton's rule.

    The left side is convex and the start lies outside, so every step stays outside the root:
    what is not converged is only a wider cut.
    """
    n = a + b
    share = a / n
    delta = xp.sqrt(2.0 * drop * n / (a * b)) + drop / b
    for _ in range(4):
        grown = share * xp.expm1(delta)
        slope = n * (share + grown) / (1.0 + grown) - a
        delta = delta - (n * xp.log1p(grown) - a * delta - drop) / slope
    return delta


def _student(
    mean: Array, scale: Array, freedom: Array, mask: Array, backend: Backend, *, settle: bool
) -> Array:
    """Row by row on panels that widen, where numpy runs and these apply; the others together."""

    def others(*arrays: Array) -> Array:
        p = _raw_student(backend, *arrays)
        return _settle(p, arrays[3], backend) if settle else p

    arrays = (mean, scale, freedom, mask)
    if backend.name != "numpy":
        return _chunked(others, arrays, backend)
    _check_double(arrays)
    if len(mask) == 1 and np.count_nonzero(mask) == mask.size:  # a single decision, most often
        p = graded.shares(mean[0], scale[0], freedom[0])
        if p is not None and abs((total := float(np.add.reduce(p))) - 1.0) <= RAW_TOLERANCE:
            return (p / total if settle else p)[None]
    out, left = np.zeros(mask.shape), []
    rows: Iterable[int] = range(len(mask))
    free = float(freedom[0, 0])
    if len(mask) > 1 and tabled.applies(free, mask.shape[1]) and (freedom == free).all():
        out = tabled.shares(mean, scale, free, mask, RAW_TOLERANCE if settle else 0.0)
        rows = np.flatnonzero(np.isnan(out[:, 0])).tolist()
    for row in rows:
        some = mask[row]
        on = _ALL if np.count_nonzero(some) == len(some) else some
        p = graded.shares(mean[row][on], scale[row][on], freedom[row][on])
        total = np.nan if p is None else float(np.add.reduce(p))
        if p is None or abs(total - 1.0) > RAW_TOLERANCE:
            left.append(row)
        else:
            out[row] = 0.0
            out[row][on] = p / total if settle else p
    if left:
        out[left] = _chunked(others, tuple(array[left] for array in arrays), backend)
    return out


def _raw_student(backend: Backend, mean: Array, scale: Array, freedom: Array, mask: Array) -> Array:
    xp = backend.xp
    mean, scale = xp.where(mask, mean, 0.0), xp.where(mask, scale, 1.0)
    # The exponent is finite at freedom 1e15, where t and Gaussian agree to the last digit.
    nu = xp.minimum(xp.where(mask, freedom, 1e15), 1e15)
    half = _levels(mask)
    levels = np.concatenate([-half[:0:-1], half])
    mean, scale, nu = mean[..., None], scale[..., None], nu[..., None]

    def edges(part: slice) -> Array:
        bent = xp.asarray(levels) * ((8.0 * nu[:, part] + 3.0) / (8.0 * nu[:, part] + 1.0))
        reach = xp.sqrt(nu[:, part] * xp.expm1(bent**2 / nu[:, part]))
        return mean[:, part] + scale[:, part] * xp.sign(bent) * reach

    def density(y: Array, part: slice) -> Array:
        t = (y - mean[:, part]) / scale[:, part]
        return xp.exp(-0.5 * (nu[:, part] + 1.0) * xp.log1p(t * t / nu[:, part]))

    def level(y: Array, part: slice) -> Array:
        t = (y - mean[:, part]) / scale[:, part]
        return xp.sign(t) * xp.sqrt(nu[:, part] * xp.log1p(t * t / nu[:, part]))

    return _integrated(backend, _Arms(density, level, edges), mask)


def _levels(mask: Array) -> Array:
    """The abscissae above the middle at which arms are cut."""
    return LEVELS if mask.shape[1] <= FEW else FINE


class _Arms(NamedTuple):
    """What a kind of posterior says of a slice of the arms, a of them.

    Attributes:
        density: points (R, 1 or a, N) and slice to (R, a, N), unnormalised.
        level: the same, to an arm's standardised distance from its middle.
        edges: slice to its cuts (R, a, Q), ascending.
    """

    density: Callable[[Array, slice], Array]
    level: Callable[[Array, slice], Array]
    edges: Callable[[slice], Array]


def _integrated(backend: Backend, arms: _Arms, mask: Array) -> Array:
    """By every arm's cuts where arms are few, else by cuts that all arms share."""
    rule = _integrate if mask.shape[1] <= FEW else _integrate_shared
    return rule(backend, arms, mask)


def _integrate(backend: Backend, arms: _Arms, mask: Array) -> Array:
    """The rule with panels between all arms' cuts."""
    xp, edges, rows = backend.xp, arms.edges(_ALL), len(mask)
    low = xp.where(mask[..., None], edges, xp.inf).min(axis=(1, 2))
    cuts = xp.where(mask[..., None], edges, low[:, None, None]).reshape(rows, -1)
    cuts = xp.sort(cuts, axis=-1)
    width = cuts[:, 1:] - cuts[:, :-1]
    panels = width.shape[1]
    points = cuts[:, :-1, None] + width[..., None] * xp.asarray(_RULE.nodes)
    f = arms.density(points.reshape(rows, 1, -1), _ALL).reshape(rows, -1, panels, NODES)
    f = f * width[:, None, :, None]
    within = f @ xp.asarray(_RULE.inner.T)
    whole = f @ xp.asarray(_RULE.weights)
    through = xp.cumsum(whole, axis=-1)
    total = xp.where(mask[..., None], through[..., -1:], 1.0)
    below = ((through - whole)[..., None] + within) / total[..., None]
    # 1e-200 keeps the quotient below finite; what it adds is far under the rule's own error.
    below = xp.where(mask[..., None, None], xp.clip(below, 1e-200, 1.0), 1.0)
    product = xp.prod(below, axis=1, keepdims=True)
    mass = (f * (product / below)).sum(axis=2) @ xp.asarray(_RULE.weights)
    return xp.where(mask, mass / total[..., 0], 0.0)


def _integrate_shared(backend: Backend, arms: _Arms, mask: Array) -> Array:
    """As :func:`_integrate`, with ``PANELS`` panels whatever the number of arms, from the right.

    Distribution functions are one less what lies above, of a total that comes from an arm's own
    panels: a small error of every arm would be a large one of the product, and at the right end,
    where the product is not small, there is none.
    """
    xp, block = backend.xp, BLOCK if backend.name == "numpy" else _CHUNK
    count = mask.shape[1]
    parts = _parts(count, len(FINE) * 2, block)
    edges = xp.concatenate([arms.edges(part) for part in parts], axis=1)
    cuts = _shared_cuts(backend, arms.level, edges, mask, block)
    total = _own(backend, arms.density, edges, block)
    step = max(1, block // (count * NODES))
    parts = _parts(count, step * NODES, block)
    above, masses = [xp.zeros(mask[:, part].shape) for part in parts], [0.0 for _ in parts]
    for end in range(PANELS, 0, -step):
        ends = cuts[:, max(0, end - step) : end + 1]
        width = (ends[:, 1:] - ends[:, :-1])[..., None]
        points = (ends[:, :-1, None] + width * xp.asarray(_RULE.nodes)).reshape(len(mask), 1, -1)
        product, quotients = 1.0, []
        for index, part in enumerate(parts):
            f = arms.density(points, part) / total[:, part, None]
            f = f.reshape(*f.shape[:2], -1, NODES) * width[:, None]
            below, above[index] = _below(f, above[index], xp)
            below = xp.where(mask[:, part, None, None], xp.clip(below, 1e-200, 1.0), 1.0)
            product = product * xp.prod(below, axis=1, keepdims=True)
            quotients.append(f / below)
        for index, quotient in enumerate(quotients):
            part_of_all = (quotient * product).sum(axis=2) @ xp.asarray(_RULE.weights)
            masses[index] = masses[index] + part_of_all
    return xp.where(mask, xp.concatenate(masses, axis=1), 0.0)


def _below(f: Array, above: Array, xp: Array) -> tuple[Array, Array]:
    """Distribution functions at the nodes of densities f (R, a, panels, NODES), times the widths.

    Also what lies above these panels' left end, given what lies above their right end (R, a).
    """
    whole = f @ xp.asarray(_RULE.weights)
    upto = xp.cumsum(whole, axis=-1)
    total = above + upto[..., -1]
    within = f @ xp.asarray(_RULE.inner.T)
    return 1.0 - (total[..., None] - (upto - whole))[..., None] + within, total


def _parts(arms: int, width: int, block: int) -> list[slice]:
    """Slices of the arms with about ``block`` elements each, at ``width`` elements per arm."""
    size = max(1, block // width)
    return [slice(begin, begin + size) for begin in range(0, arms, size)]


def _own(
    backend: Backend, density: Callable[[Array, slice], Array], edges: Array, block: int
) -> Array:
    """The integral of every arm's density over its own panels, edges (R, A, Q): (R, A)."""
    xp, totals = backend.xp, []
    for part in _parts(edges.shape[1], edges.shape[2] * NODES, block):
        left, width = edges[:, part, :-1], edges[:, part, 1:] - edges[:, part, :-1]
        points = left[..., None] + width[..., None] * xp.asarray(_RULE.nodes)
        f = density(points.reshape(*left.shape[:2], -1), part).reshape(points.shape)
        totals.append(((f @ xp.asarray(_RULE.weights)) * width).sum(axis=-1))
    return xp.concatenate(totals, axis=1)


def _shared_cuts(
    backend: Backend,
    level: Callable[[Array, slice], Array],
    edges: Array,
    mask: Array,
    block: int,
) -> Array:
    """Where to cut for all arms at once: (R, PANELS + 1), ascending.

    No arm that can be best may change much within a panel, in units of its own level (its
    standardised distance from the middle). So the cuts are moved, a few times, to where the
    greatest change of any arm is the same in every panel; and the first of them to where the best
    arm is above it for certain.
    """
    xp = backend.xp
    start = xp.where(mask, edges[..., 0], -xp.inf).max(axis=1)
    end = xp.where(mask, edges[..., -1], -xp.inf).max(axis=1)
    middle = xp.where(mask, edges[..., edges.shape[-1] // 2], -xp.inf)
    top = xp.argsort(middle, axis=1)[:, -TOP:, None]
    theirs = xp.take_along_axis(edges[..., ::2], top, axis=1).reshape(len(mask), -1)
    cuts = xp.sort(xp.clip(theirs, start[:, None], end[:, None]), axis=1)
    cuts = xp.concatenate([start[:, None], cuts[:, 1:-1], end[:, None]], axis=1)
    for _ in range(ROUNDS):
        change: Array = 0.0
        below: Array = 0.0
        for part in _parts(mask.shape[1], PANELS, block):
            at = xp.clip(level(cuts[:, None, :], part), -FINE[-1], FINE[-1])
            at = xp.where(mask[:, part, None], at, FINE[-1])
            change = xp.maximum(change, (at[..., 1:] - at[..., :-1]).max(axis=1))
            tail = 0.5 * xp.exp(-0.416 * at * at - 0.717 * xp.abs(at))
            below = below + xp.log(xp.where(at < 0.0, tail, 1.0 - tail)).sum(axis=1)
        cuts = _spread(cuts, change, below[:, 1:] > LEAST_LOG, xp)
    return cuts


def _spread(cuts: Array, change: Array, counts: Array, xp: Array) -> Array:
    """Cuts (R, PANELS + 1) moved to equal changes, of panels (R, PANELS) that count."""
    even = xp.asarray(np.linspace(0.0, 1.0, PANELS + 1))
    share = change / xp.maximum(change.sum(axis=1, keepdims=True), 1e-300)
    need = xp.where(counts, share + 0.1 / PANELS, 0.0)
    upto = xp.concatenate([xp.zeros((len(cuts), 1)), xp.cumsum(need, axis=1)], axis=1)
    wanted = upto[:, -1:] * even
    index = (upto[:, None, :] <= wanted[..., None]).sum(axis=-1) - 1
    index = xp.clip(index, 0, PANELS - 1)
    left, right = (xp.take_along_axis(cuts, index + one, axis=1) for one in (0, 1))
    low, high = (xp.take_along_axis(upto, index + one, axis=1) for one in (0, 1))
    return left + (right - left) * ((wanted - low) / xp.where(high > low, high - low, 1.0))


def _settle(p: Array, mask: Array, backend: Backend) -> Array:
    """Divide by the sum where the raw sum is within tolerance, else share equally."""
    xp = backend.xp
    total = p.sum(axis=-1, keepdims=True)
    sound = xp.abs(total - 1.0) <= RAW_TOLERANCE
    equal = mask / xp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    return xp.where(sound, xp.maximum(p, 0.0) / xp.where(sound, total, 1.0), equal)


def _check_double(arrays: tuple[Array, ...]) -> None:
    for place, array in enumerate(arrays):
        if array.dtype not in _DOUBLE_OR_BOOL:
            what = ("first", "second", "third", "fourth")[place]
            require_double(array, what=f"the {what} argument")


def _chunked(function: Callable[..., Array], arrays: tuple[Array, ...], backend: Backend) -> Array:
    """Apply a row-wise function in pieces of bounded memory."""
    _check_double(arrays)
    rows, arms = arrays[0].shape
    panels = arms * 2 * len(LEVELS) if arms <= FEW else PANELS
    size = max(1, _CHUNK // (arms * panels * NODES))
    if rows <= size:
        return function(*arrays)
    return backend.map_rows(function, arrays, size)
