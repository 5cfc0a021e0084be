"""K-means and Gaussian mixtures, fast on millions of rows: BLAS in blocks that fit a core's cache.

Both find their answer on a sample of rows first, with restarts, and then pass over all rows until
nothing moves any more; from so near, two or three passes are enough. A pass works off blocks of
rows in single precision, several threads at once (numpy lets go of the interpreter in its loops),
and adds up their sums in double precision in the order of the rows, so that a result does not hang
on the number of threads. What is to be clustered should be standardised, as clusters much narrower
than the whole (:data:`NARROW`) are worked off in double precision, at half the speed.

**K-means** (Lloyd): seeds by k-means++, the best of several restarts. **Mixtures** by EM from the
K-means of the sample: the E-step of full covariances is one product with all components' whitening
matrices side by side, the M-step another one; a ridge keeps covariances from collapsing.

BLAS is kept to one thread meanwhile: products this small gain nothing from its own threads, which
wait for each other for twenty times as long as the work takes where another process wants a core.

Source: Arthur and Vassilvitskii, SODA 2007 (k-means++); Lloyd, IEEE Trans. Inf. Theory 28 (1982);
Dempster, Laird and Rubin, JRSS B 39 (1977).

Letters: ``N`` rows, ``D`` columns, ``K`` clusters.

>>> x = np.concatenate([np.zeros((50, 2)), np.ones((50, 2))])
>>> found = kmeans(x, 2, seed=0)
>>> sorted(found.mean[:, 0].tolist()), found.size.tolist(), float(found.inertia)
([0.0, 1.0], [50.0, 50.0], 0.0)
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
#: Rows of any floating point type.
Rows = NDArray[np.floating[Any]]

#: Rows of the sample, of the part of it that restarts see, and of a thread's task; numbers of a
#: block (half a megabyte).
SAMPLE, FEW, TASK, BLOCK = 1 << 16, 1 << 13, 1 << 16, 1 << 17
#: Standard deviation of a cluster, relative to the whole's, below which single precision ends.
NARROW = 0.03
#: Restarts of K-means, and how closely their means need to settle.
RESTARTS, ROUGHLY = 6, 1e-3
#: Passes at most; a mixture's over the sample and over all rows.
PASSES = 300


class Clusters(NamedTuple):
    """A K-means.

    Attributes:
        mean: (K, D).
        size: (K,) rows of each.
        inertia: () sum over the rows of the squared distance to the nearest mean.
    """

    mean: Floats
    size: Floats
    inertia: Floats


class Mixture(NamedTuple):
    """A Gaussian mixture.

    Attributes:
        weight: (K,) they sum to 1.
        mean: (K, D).
        covariance: (K, D) variances, or (K, D, D).
        log_likelihood: () mean over the rows.
    """

    weight: Floats
    mean: Floats
    covariance: Floats
    log_likelihood: Floats


#: ``(block (n, D)) -> sums``: what a pass adds up, a tuple of arrays.
Pass = Callable[[Rows], tuple[Any, ...]]


def kmeans(
    x: Rows, k: int, *, seed: int, restarts: int = RESTARTS, tolerance: float = 1e-5,
    threads: int | None = None,
) -> Clusters:  # fmt: skip
    """The K-means of the rows.

    Args:
        x: (N, D) finite.
        k: K, from 1 to the number of distinct rows.
        seed: of sample and seeds.
        restarts: on the sample; the best one goes on.
        tolerance: means have settled when their squared moves sum to less than this times the
            columns' mean variance.
        threads: None for as many as there are cores.

    Raises:
        ValueError: a number is not finite, or there are fewer distinct rows than clusters.
    """
    rng = np.random.default_rng(seed)
    sample, origin, scale = _sample(x, k, rng)
    with threadpool_limits(1, "blas"):
        found = _on_sample(sample, k, origin, scale, rng, restarts=restarts, tolerance=tolerance)
        if len(sample) == len(x):
            return found
        return _lloyd(x, found.mean, origin, tolerance * float(np.mean(scale**2)), threads)


def nearest(x: Rows, mean: Floats, *, threads: int | None = None) -> NDArray[np.int32]:
    """The nearest mean (N,) of each row."""
    origin = mean.mean(axis=0)
    turned, offset = _turned(mean - origin)

    def part(block: Rows) -> tuple[Any, ...]:
        score = turned @ (block - origin).astype(np.float32).T
        score += offset
        return (score.argmin(axis=0).astype(np.int32),)

    with threadpool_limits(1, "blas"):
        return np.concatenate([one[0] for one in _each(part, x, threads)])


def mixture(
    x: Rows, k: int, *, seed: int, covariance: Literal["diagonal", "full"] = "diagonal",
    ridge: float = 1e-6, tolerance: float = 1e-4, threads: int | None = None,
) -> Mixture:  # fmt: skip
    """The Gaussian mixture of (locally) greatest likelihood.

    Args:
        x: (N, D) finite.
        k: K, as in :func:`kmeans`.
        seed: of sample and seeds.
        covariance: of the components.
        ridge: added to every variance, relative to the whole's.
        tolerance: EM ends when the mean log likelihood gains less in a pass.
        threads: None for as many as there are cores.

    Raises:
        ValueError: as for :func:`kmeans`.
    """
    rng = np.random.default_rng(seed)
    sample, origin, scale = _sample(x, k, rng)
    level = ridge * scale**2
    with threadpool_limits(1, "blas"):
        start = _on_sample(sample, k, origin, scale, rng, restarts=RESTARTS, tolerance=1e-4)
        first = _hard(sample, start, level, full=covariance == "full")
        found = _expected(sample, first, origin, scale, level, tolerance, 1)
        if len(sample) == len(x):
            return found
        return _expected(x, found, origin, scale, level, tolerance, threads)


def log_densities(x: Rows, found: Mixture) -> Floats:
    """``ln(weight · density)`` (N, K) of each row under each component, in double precision."""
    rows, out = np.asarray(x, np.float64), np.empty((len(x), len(found.weight)))
    for k, (mean, covariance) in enumerate(zip(found.mean, found.covariance, strict=True)):
        if covariance.ndim == 1:
            size, white = np.log(covariance).sum(), (rows - mean) / np.sqrt(covariance)
        else:
            root = _whitening(covariance)
            size, white = -2.0 * np.log(np.diag(root)).sum(), (rows - mean) @ root
        out[:, k] = size + np.einsum("nd,nd->n", white, white)
    level = np.log(found.weight) - 0.5 * rows.shape[1] * np.log(2.0 * np.pi)
    return np.asarray(level - 0.5 * out, np.float64)


def _sample(x: Rows, k: int, rng: np.random.Generator) -> tuple[Rows, Floats, Floats]:
    """Rows to begin with, their mean, and their standard deviations (1 for constant columns)."""
    if x.ndim != 2 or not 1 <= k <= len(x):
        raise ValueError("x must be (N, D) with N >= k >= 1")
    # Drawn with replacement and then made distinct: as good, and no permutation of all rows.
    some = x if len(x) <= SAMPLE else x[np.unique(rng.integers(0, len(x), SAMPLE))]
    _check_finite(some)
    spread = some.std(axis=0, dtype=np.float64)
    return some, some.mean(axis=0, dtype=np.float64), np.where(spread > 0, spread, 1.0)


def _check_finite(numbers: Any) -> None:
    if not np.isfinite(numbers).all():
        raise ValueError("x: every number must be finite")


def _on_sample(
    sample: Rows, k: int, origin: Floats, scale: Floats, rng: np.random.Generator, *,
    restarts: int, tolerance: float,
) -> Clusters:  # fmt: skip
    """K-means of the sample: the best of the restarts on a few of its rows, carried on."""
    unit = float(np.mean(scale**2))
    few = sample if len(sample) <= FEW else sample[rng.permutation(len(sample))[:FEW]]
    found = [_lloyd(few, _seeds(few, k, rng), origin, ROUGHLY * unit, 1) for _ in range(restarts)]
    best = min(found, key=lambda one: float(one.inertia))
    return _lloyd(sample, best.mean, origin, tolerance * unit, 1)


def _seeds(x: Rows, k: int, rng: np.random.Generator) -> Floats:
    """Means (K, D) by greedy k-means++: of some candidates the one that helps most."""
    rows: Floats = np.asarray(x, np.float64)
    chosen = [int(rng.integers(len(rows)))]
    away = np.square(rows - rows[chosen[0]]).sum(axis=1)
    square = np.einsum("nd,nd->n", rows, rows)
    for _ in range(1, k):
        total = away.cumsum()
        if not total[-1] > 0:
            raise ValueError(f"x: there are fewer than {k} distinct rows")
        tries = np.searchsorted(total, rng.random(2 + int(np.log(k))) * total[-1], side="right")
        tries = np.minimum(tries, len(rows) - 1)
        distance = square + square[tries, None] - 2.0 * (rows[tries] @ rows.T)
        closer = np.minimum(away, np.maximum(distance, 0.0))
        one = int(closer.sum(axis=1).argmin())
        chosen.append(int(tries[one]))
        away = closer[one]
        away[tries[one]] = 0.0
    return rows[chosen]


def _lloyd(x: Rows, mean: Floats, origin: Floats, limit: float, threads: int | None) -> Clusters:
    """Lloyd's passes from ``mean`` on; the last one does not move the means any more."""
    shift, square = np.asarray(origin, np.float32), 0.0
    mean, settled = mean - origin, False
    for number in range(PASSES):
        turned, offset = _turned(mean)

        def part(
            block: Rows, turned: Any = turned, offset: Any = offset, first: bool = number == 0
        ) -> tuple[Any, ...]:
            return _nearest_sums(block, shift, turned, offset, first)

        sums, size, best, squares = _total(part, x, threads)
        square += squares
        inertia = max(best + square, 0.0)
        _check_finite(inertia)
        if settled or number == PASSES - 1:
            break
        moved = np.where(size[:, None] > 0, sums / np.maximum(size, 1.0)[:, None], mean)
        settled = float(np.square(moved - mean).sum()) <= limit
        mean = moved
    return Clusters(mean + origin, size, np.array(inertia))


def _turned(mean: Floats) -> tuple[Rows, Rows]:
    """What squared distances to the means (K, D) are computed by, less the rows' own squares."""
    offset = np.square(mean).sum(axis=1)[:, None]
    return (-2.0 * mean).astype(np.float32), offset.astype(np.float32)


def _nearest_sums(
    block: Rows, shift: Rows, turned: Rows, offset: Rows, squares: bool
) -> tuple[Any, ...]:
    """Sums (K, D) and sizes (K,) of the rows nearest to each mean, and Σ least distance - x²."""
    x = (block - shift).astype(np.float32, copy=False)
    score = turned @ x.T
    score += offset
    best = score.min(axis=0)
    mine = score == best
    size = mine.sum(axis=1)
    if size.sum() != len(x):  # two means at the same distance: the first has it
        mine = score.argmin(axis=0) == np.arange(len(turned))[:, None]
        size = mine.sum(axis=1)
    sums = mine.astype(np.float32) @ x
    total = float(best.sum(dtype=np.float64))
    square = float(np.vdot(x, x)) if squares else 0.0
    return sums.astype(np.float64), size.astype(np.float64), total, square


def _hard(x: Rows, found: Clusters, level: Floats, *, full: bool) -> Mixture:
    """The mixture that a K-means is: to begin with."""
    label, rows = nearest(x, found.mean, threads=1), np.asarray(x, np.float64)
    whole = np.cov(rows.T, bias=True).reshape(x.shape[1], x.shape[1])
    spread = []
    for k in range(len(found.mean)):
        mine = rows[label == k] - found.mean[k]
        one = mine.T @ mine / len(mine) if len(mine) > x.shape[1] else whole
        spread.append(one + np.diag(level))
    covariance = np.array(spread) if full else np.array([np.diag(one) for one in spread])
    weight = (found.size + 1.0) / (found.size + 1.0).sum()
    return Mixture(weight, found.mean, covariance, np.array(-np.inf))


def _expected(
    x: Rows, found: Mixture, origin: Floats, scale: Floats, level: Floats, tolerance: float,
    threads: int | None,
) -> Mixture:  # fmt: skip
    """EM's passes from ``found`` on; its likelihood is that of what is returned."""
    full, before = found.covariance.ndim == 3, -np.inf
    for number in range(PASSES):
        least = _least_spread(found.covariance, scale)
        kind = np.float32 if least > NARROW else np.float64
        step = _full_step if full else _diagonal_step
        part = step(found, origin.astype(kind), kind)
        size, sums, squares, total = _total(part, x, threads)
        likelihood = total / len(x)
        _check_finite(likelihood)
        if likelihood - before < tolerance or number == PASSES - 1:
            return found._replace(log_likelihood=np.array(likelihood))
        before = likelihood
        found = _maximised(found, size, sums, squares, origin, level)
    return found


def _least_spread(covariance: Floats, scale: Floats) -> float:
    """The least standard deviation of any component, relative to the whole's."""
    if covariance.ndim == 2:
        return float(np.sqrt(covariance / scale**2).min())
    return float(np.sqrt(np.linalg.eigvalsh(covariance / np.outer(scale, scale)).min()))


def _maximised(
    found: Mixture, size: Floats, sums: Floats, squares: Floats, origin: Floats, level: Floats
) -> Mixture:
    """The M-step, of sums about ``origin``; a component without rows keeps what it was."""
    there = size > 1e-8 * size.sum()
    n = np.maximum(size, 1e-300)[:, None]
    mean = np.where(there[:, None], sums / n, found.mean - origin)
    if squares.ndim == 2:
        spread = np.maximum(squares / n - mean**2, 0.0) + level
        keep = there[:, None]
    else:
        outer = mean[:, :, None] * mean[:, None, :]
        spread = squares / n[..., None] - outer + np.diag(level)
        spread, keep = (spread + spread.swapaxes(1, 2)) / 2.0, there[:, None, None]
    weight = np.maximum(size / size.sum(), 1e-12)
    covariance = np.where(keep, spread, found.covariance)
    return Mixture(weight / weight.sum(), mean + origin, covariance, found.log_likelihood)


def _whitening(covariance: Floats) -> Floats:
    """A matrix (D, D), triangular, that makes a component's covariance the identity."""
    return np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)).T, np.float64)


def _full_step(found: Mixture, origin: Rows, kind: Any) -> Pass:
    """E- and M-sums of a block, covariances full."""
    count, width = found.mean.shape
    roots = [_whitening(one) for one in found.covariance]
    white = np.concatenate([root.T for root in roots]).astype(kind)
    middle = np.concatenate(
        [root.T @ (mean - origin) for root, mean in zip(roots, found.mean, strict=True)]
    ).astype(kind)[:, None]
    size = np.array([np.log(np.diag(root)).sum() for root in roots])
    level = (np.log(found.weight) + size - 0.5 * width * np.log(2 * np.pi)).astype(kind)[:, None]

    def part(block: Rows) -> tuple[Any, ...]:
        x = (block - origin).astype(kind, copy=False)
        turned = np.ascontiguousarray(x.T)
        apart = white @ turned
        apart -= middle
        apart *= apart
        share, total = _shares(level - 0.5 * apart.reshape(count, width, -1).sum(axis=1))
        weighed = (share[:, None, :] * turned).reshape(count * width, -1)
        squares = (weighed @ x).reshape(count, width, width)
        return (*_doubled(share.sum(axis=1), share @ x, squares), total)

    return part


def _diagonal_step(found: Mixture, origin: Rows, kind: Any) -> Pass:
    """E- and M-sums of a block, covariances diagonal."""
    mean, variance = found.mean - origin, found.covariance
    quadratic = (-0.5 / variance).astype(kind)
    linear = (mean / variance).astype(kind)
    level = np.log(found.weight) - 0.5 * (
        np.log(2 * np.pi * variance).sum(axis=1) + (mean**2 / variance).sum(axis=1)
    )
    level = level.astype(kind)[:, None]

    def part(block: Rows) -> tuple[Any, ...]:
        x = (block - origin).astype(kind, copy=False)
        square = x * x
        score = quadratic @ square.T
        score += linear @ x.T
        score += level
        share, total = _shares(score)
        return (*_doubled(share.sum(axis=1), share @ x, share @ square), total)

    return part


def _shares(score: Rows) -> tuple[Rows, float]:
    """How far a row is of each component (K, n), and the log likelihood of the rows."""
    top = score.max(axis=0)
    score -= top
    np.exp(score, out=score)
    whole = score.sum(axis=0)
    score /= whole
    np.log(whole, out=whole)
    whole += top
    return score, float(whole.sum(dtype=np.float64))


def _doubled(*parts: Rows) -> tuple[Floats, ...]:
    return tuple(part.astype(np.float64) for part in parts)


def _total(part: Pass, x: Rows, threads: int | None) -> tuple[Any, ...]:
    """The sums of ``part`` over all rows, added up in the order of the rows."""
    found = _each(part, x, threads, add=True)
    return tuple(sum(field[1:], field[0]) for field in zip(*found, strict=True))


def _each(part: Pass, x: Rows, threads: int | None, *, add: bool = False) -> list[tuple[Any, ...]]:
    """``part`` of every block, in order; added up within a thread's task where told."""
    block = max(256, BLOCK // x.shape[1])

    def task(start: int) -> list[tuple[Any, ...]]:
        ends = range(start, min(start + TASK, len(x)), block)
        parts = [part(x[i : min(i + block, start + TASK)]) for i in ends]
        if not add:
            return parts
        return [tuple(sum(field[1:], field[0]) for field in zip(*parts, strict=True))]

    starts, workers = range(0, len(x), TASK), threads or os.cpu_count() or 1
    if workers == 1 or len(starts) == 1:
        return [one for start in starts for one in task(start)]
    with ThreadPoolExecutor(workers) as pool:
        return [one for found in pool.map(task, starts) for one in found]
