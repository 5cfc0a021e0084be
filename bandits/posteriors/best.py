"""P(arm is best) for independent arms, by Gauss-Legendre panels.

``p_k = ∫ f_k(y) ∏_{j≠k} F_j(y) dy`` (METHODS §1). The real line is cut at every arm's quantiles,
so each density is smooth on every panel, and each panel carries ``NODES`` Gauss-Legendre nodes.

Only densities are evaluated. The distribution functions come from the same nodes: ``F_j`` at a
node is the sum of the panels before it plus the integral, within the panel, of the polynomial
through the nodes (a constant NODES x NODES matrix). That spares every incomplete beta function:
it is faster than scipy's, and JAX's (which is wrong in the seventh digit) is not needed, so both
backends compute the same numbers and the code lowers for any accelerator.

Normalisation: each ``F_j`` is divided by its own total. The raw sum ``Σ p_k`` then equals 1 up to
the error of the quadrature, and is the check of it: within ``RAW_TOLERANCE`` the result is divided
by its sum; otherwise (never seen on the tested range) the row falls back to equal shares of the
eligible arms, which is safe to serve. :func:`raw` gives the sums before that.

>>> p = beta(np.array([[2.0, 5.0]]), np.array([[3.0, 3.0]]), np.array([[True, True]]))
>>> p.round(6)
array([[0.19697, 0.80303]])
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bandits.backend import Backend, numpy_backend, require_double
from bandits.types import Array

#: Gauss-Legendre nodes in each panel.
NODES = 8

#: Largest accepted |Σp - 1| before normalisation.
RAW_TOLERANCE = 1e-6

#: Standard normal abscissae, mapped to each arm's quantiles, at which the line is cut: the outer
#: steps are short so that algebraic tails (Student t, Beta with b < 1 against a better payer) keep
#: a bounded ratio within a panel. Outside lies 1e-10 of an arm's mass.
LEVELS = np.array([0.0, 0.8, 1.6, 2.4, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5])

#: Elements (rows x arms x nodes) that the numpy path holds at a time: stay within the cache.
_CHUNK = 1 << 20


class _Rule(NamedTuple):
    nodes: Array  # (N,) in [0, 1]
    weights: Array  # (N,)
    inner: Array  # (N, N): integral from 0 to node i of the j-th Lagrange polynomial


def _rule(count: int) -> _Rule:
    x, w = np.polynomial.legendre.leggauss(count)
    values = np.polynomial.legendre.legvander(x, count)
    degree = np.arange(count)
    # ∫ P_d = (P_{d+1} - P_{d-1}) / (2d + 1) from -1, with P_{-1} = -1 for d = 0.
    lower = np.hstack([-np.ones((count, 1)), values[:, : count - 1]])
    integrals = (values[:, 1:] - lower) / (2 * degree + 1)
    coefficients = (values[:, :count] * w[:, None]).T * (2 * degree[:, None] + 1) / 2
    return _Rule((x + 1) / 2, w / 2, integrals @ coefficients / 2)


_RULE = _rule(NODES)


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
    backend = backend or numpy_backend()
    arrays = (mean, scale, freedom, mask)
    return _chunked(
        lambda *xs: _settle(_raw_student(backend, *xs), xs[3], backend), arrays, backend
    )


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
    backend = backend or numpy_backend()
    arrays = (mean, scale, freedom, mask)
    return _chunked(lambda *xs: _raw_student(backend, *xs), arrays, backend)


def _raw_beta(
    backend: Backend, a: Array, b: Array, mask: Array, value: Array | None = None
) -> Array:
    """Integrates over v = logit(y / max value), in which the tails of every arm are exponential."""
    xp = backend.xp
    a, b = xp.where(mask, a, 1.0), xp.where(mask, b, 1.0)
    edges = xp.log(a / b)[..., None] + _logit_offsets(xp, a, b)
    if value is None:
        ratio = None
    else:
        value = xp.where(mask, value, 0.0)
        ratio = xp.where(mask, value / value.max(axis=-1, keepdims=True), 1.0)
        beyond = (1.0 - ratio)[..., None] * xp.exp(edges)
        edges = edges + xp.log(ratio)[..., None] - xp.log1p(beyond)
    middle = edges[..., len(LEVELS) - 1]
    peak = _log_beta(xp, a, b, ratio, middle[:, None, :], diagonal=True)

    def density(v: Array) -> Array:
        return xp.exp(_log_beta(xp, a, b, ratio, v) - peak[..., None])

    return _integrate(backend, density, edges, mask)


def _log_beta(
    xp: Array, a: Array, b: Array, ratio: Array | None, v: Array, *, diagonal: bool = False
) -> Array:
    """Log density, up to a constant, of v (R, N) for each arm: (R, A, N).

    With ``diagonal`` v is (R, 1, A) and arm k is evaluated at its own v only: (R, A).
    """
    if diagonal:
        v = v[:, 0, :]
    else:
        a, b, v = a[..., None], b[..., None], v[:, None, :]
        ratio = None if ratio is None else ratio[..., None]
    tail = xp.log1p(xp.exp(-xp.abs(v)))
    out = -a * (xp.maximum(-v, 0.0) + tail) - b * (xp.maximum(v, 0.0) + tail)
    if ratio is None:
        return out
    # An arm that pays less than the best payer ends where c e^v = 1.
    over = (1.0 / ratio - 1.0) * xp.exp(v)
    inside = over < 1.0
    return xp.where(inside, out + (b - 1.0) * xp.log1p(-xp.where(inside, over, 0.0)), -xp.inf)


def _logit_offsets(xp: Array, a: Array, b: Array) -> Array:
    """Where the log density of logit θ has fallen by LEVELS²/2 from its mode: (R, A, Q)."""
    drop = xp.asarray(LEVELS[1:] ** 2 / 2)
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


def _raw_student(backend: Backend, mean: Array, scale: Array, freedom: Array, mask: Array) -> Array:
    xp = backend.xp
    mean, scale = xp.where(mask, mean, 0.0), xp.where(mask, scale, 1.0)
    # The exponent is finite at freedom 1e15, where t and Gaussian agree to the last digit.
    nu = xp.minimum(xp.where(mask, freedom, 1e15), 1e15)
    levels = np.concatenate([-LEVELS[:0:-1], LEVELS])
    bent = xp.asarray(levels) * ((8.0 * nu + 3.0) / (8.0 * nu + 1.0))[..., None]
    reach = xp.sqrt(nu[..., None] * xp.expm1(bent**2 / nu[..., None]))
    edges = mean[..., None] + scale[..., None] * xp.sign(bent) * reach

    def density(y: Array) -> Array:
        t = (y[:, None, :] - mean[..., None]) / scale[..., None]
        return xp.exp(-0.5 * (nu[..., None] + 1.0) * xp.log1p(t * t / nu[..., None]))

    return _integrate(backend, density, edges, mask)


def _integrate(
    backend: Backend, density: Callable[[Array], Array], edges: Array, mask: Array
) -> Array:
    """The panel rule: ``density`` maps (R, N) to (R, A, N) unnormalised; edges (R, A, Q)."""
    xp = backend.xp
    rows, arms = mask.shape
    low = xp.where(mask[..., None], edges, xp.inf).min(axis=(1, 2))
    cuts = xp.where(mask[..., None], edges, low[:, None, None]).reshape(rows, -1)
    cuts = xp.sort(cuts, axis=-1)
    width = cuts[:, 1:] - cuts[:, :-1]
    panels = width.shape[1]
    points = cuts[:, :-1, None] + width[..., None] * xp.asarray(_RULE.nodes)
    f = density(points.reshape(rows, -1)).reshape(rows, arms, panels, NODES)
    f = f * width[:, None, :, None]
    within = f @ xp.asarray(_RULE.inner.T)
    whole = f @ xp.asarray(_RULE.weights)
    through = xp.cumsum(whole, axis=-1)
    total = through[..., -1:]
    below = ((through - whole)[..., None] + within) / total[..., None]
    # 1e-200 keeps the quotient below finite; what it adds is far under the rule's own error.
    below = xp.where(mask[..., None, None], xp.clip(below, 1e-200, 1.0), 1.0)
    product = xp.prod(below, axis=1, keepdims=True)
    mass = (f * (product / below)).sum(axis=2) @ xp.asarray(_RULE.weights)
    return xp.where(mask, mass / total[..., 0], 0.0)


def _settle(p: Array, mask: Array, backend: Backend) -> Array:
    """Divide by the sum where the raw sum is within tolerance, else share equally."""
    xp = backend.xp
    total = p.sum(axis=-1, keepdims=True)
    sound = xp.abs(total - 1.0) <= RAW_TOLERANCE
    equal = mask / xp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    return xp.where(sound, xp.maximum(p, 0.0) / xp.where(sound, total, 1.0), equal)


def _chunked(function: Callable[..., Array], arrays: tuple[Array, ...], backend: Backend) -> Array:
    """Apply a row-wise function in pieces of bounded memory."""
    for array, what in zip(arrays, ("first", "second", "third", "fourth"), strict=False):
        if np.dtype(array.dtype) != np.dtype(bool):
            require_double(array, what=f"the {what} argument")
    rows, arms = arrays[0].shape
    size = max(1, _CHUNK // (arms * arms * 2 * len(LEVELS) * NODES))
    if rows <= size:
        return function(*arrays)
    return backend.map_rows(function, arrays, size)
