"""Personas: groups of like customers, found by clustering, described in words, used as segments.

:func:`fit` standardises the features (:func:`log_rfm`, demographics, behaviour), clusters them by
K-means or a Gaussian mixture (:mod:`bandits.customers.clustering`), and, where not told, chooses
how many: of the numbers whose clusters come back when customers are drawn afresh (mean adjusted
Rand index of bootstrapped fits at least ``STABLE``) the one with the least BIC. Real customers are
not Gaussian, so BIC alone would go on splitting. :func:`assign` is numpy, for the decision path.

Clusters describe, they do not predict who responds to a discount: keep as many as save regret.

Source: Schwarz, Annals of Statistics 6 (1978), for K-means as in Pelleg and Moore, ICML 2000;
Hubert and Arabie, Journal of Classification 2 (1985); stability: Hennig, CSDA 52 (2007).

Letters: ``N`` customers, ``D`` features, ``K`` personas.

>>> rng = np.random.default_rng(0)
>>> gap, spend = np.repeat([7.0, 60.0], [240, 160]), np.repeat([90.0, 20.0], [240, 160])
>>> features = np.log(np.stack([gap, spend], axis=1)) + rng.normal(size=(400, 2)) / 10
>>> found = fit(features, seed=0)
>>> describe(found.personas, [GAP, SPEND])
['buys weekly, high spend', 'buys every other month, low spend']
>>> assign(found.personas, np.log([[8.0, 70.0], [50.0, 30.0]]))
array([0, 1], dtype=int32)
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from bandits.customers import clustering
from bandits.customers.clustering import Floats, Rows

Method = Literal["kmeans", "diagonal", "full"]

#: Mean adjusted Rand index from which on personas are held to be stable, and of how many fits.
STABLE, BOOTSTRAPS = 0.8, 8
#: Customers that the number of personas is chosen on.
CHOICE = 10_000
#: A feature stands out when a persona's mean is so many standard deviations off everybody's, and so
#: many are named.
STANDS_OUT, NAMED = 0.5, 3


class Personas(NamedTuple):
    """Fitted personas, the largest first; :mod:`bandits.artefact` stores them.

    Attributes:
        centre: (D,) mean of the features.
        scale: (D,) their standard deviations.
        weight: (K,) of a persona in the assignment; all the same for K-means.
        mean: (K, D) of the standardised features.
        covariance: (K, D) or (K, D, D) of them; for K-means one variance throughout.
        size: (K,) customers that it was fitted to.
    """

    centre: Floats
    scale: Floats
    weight: Floats
    mean: Floats
    covariance: Floats
    size: Floats


#: Personas of no size, by the dimensions of their covariance: K-means and diagonal ones have 2.
#: ``artefact.from_bytes`` is told to expect one of them.
EMPTY = {
    2: Personas(*(np.zeros(n) for n in (0, 0, 0, (0, 0), (0, 0), 0))),
    3: Personas(*(np.zeros(n) for n in (0, 0, 0, (0, 0), (0, 0, 0), 0))),
}


class Candidate(NamedTuple):
    """A number of personas that was tried: less ``bic`` is better, ``stability`` is 1 at best."""

    number: int
    bic: float
    stability: float


class Found(NamedTuple):
    """Personas, and what their number was chosen from (empty where it was told)."""

    personas: Personas
    tried: tuple[Candidate, ...]


class Trait(NamedTuple):
    """A feature in words.

    Attributes:
        low: of a persona that is well below everybody's mean.
        high: of one well above.
        says: what a persona's mean is called, for a feature that is always named; else None.
    """

    low: str
    high: str
    says: Callable[[float], str] | None = None


def rhythm(log_days: float) -> str:
    """What a mean of the logarithm of the days between purchases is called."""
    words = ((1.6, "buys daily"), (4.5, "buys several times a week"), (10.5, "buys weekly"),
             (21.0, "buys every other week"), (45.0, "buys monthly"),
             (75.0, "buys every other month"), (140.0, "buys quarterly"))  # fmt: skip
    days = np.exp(log_days)
    return next((text for most, text in words if days <= most), "buys rarely")


#: Traits of the usual features, each as a logarithm or a share.
RECENCY = Trait("bought recently", "has not bought for long")
FREQUENCY = Trait("few purchases", "many purchases")
SPEND = Trait("low spend", "high spend")
GAP = Trait("buys often", "buys rarely", rhythm)
DISCOUNT_SHARE = Trait("pays the full price", "price-sensitive")
BASKET = Trait("small baskets", "large baskets")
BROWSING = Trait("hardly browses", "browses a lot")


def log_rfm(recency: Floats, frequency: Floats, spend: Floats) -> Floats:
    """Recency, frequency and spend (N, 3) as ``log(1 + x)``: :data:`RECENCY` and so on name them.

    Raises:
        ValueError: a number is below 0.
    """
    columns = np.stack([recency, frequency, spend], axis=1).astype(np.float64)
    if not (columns >= 0).all():
        raise ValueError("recency, frequency and spend must be at least 0")
    out: Floats = np.log1p(columns)
    return out


def fit(
    features: Rows, *, seed: int, count: int | None = None, most: int = 8,
    method: Method = "kmeans", threads: int | None = None,
) -> Found:  # fmt: skip
    """The personas of some customers.

    Args:
        features: (N, D) finite; the clustering standardises them.
        seed: of everything random.
        count: K; None chooses from 1 to ``most``.
        most: of the numbers that are tried.
        method: K-means, or a mixture with diagonal or full covariances.
        threads: as of :func:`bandits.customers.clustering.kmeans`.

    Raises:
        ValueError: as there.
    """
    x, centre, scale = _standardised(features)
    tried = () if count else _tried(x, most, method, seed)
    stable = [one for one in tried if one.stability >= STABLE]
    chosen = count or min(stable, key=lambda one: one.bic).number
    found = _personas(x, chosen, method, seed, threads)
    return Found(found._replace(centre=centre, scale=scale), tried)


def memberships(personas: Personas, features: Rows) -> Floats:
    """How far each customer is of each persona (N, K); rows sum to 1."""
    x = (np.asarray(features, np.float64) - personas.centre) / personas.scale
    out: Floats = special.softmax(clustering.log_densities(x, _mixture(personas)), axis=1)
    return out


def assign(personas: Personas, features: Rows) -> NDArray[np.int32]:
    """The persona (N,) of each customer."""
    x = (np.asarray(features, np.float64) - personas.centre) / personas.scale
    density = clustering.log_densities(x, _mixture(personas))
    out: NDArray[np.int32] = density.argmax(axis=1).astype(np.int32)
    return out


def aligned(personas: Personas, earlier: Personas) -> Personas:
    """The same personas, numbered as the nearest ones of an earlier fit: segments keep their names.

    Personas without a counterpart come last.

    Raises:
        ValueError: the two are not of the same features.
    """
    if len(personas.centre) != len(earlier.centre):
        raise ValueError("personas: not of the same features")
    now = personas.mean * personas.scale + personas.centre
    before = earlier.mean * earlier.scale + earlier.centre
    apart = np.square((now[:, None] - before) / personas.scale).sum(axis=2)
    mine, theirs = optimize.linear_sum_assignment(apart)
    known = mine[np.argsort(theirs)]
    order = np.concatenate([known, np.setdiff1d(np.arange(len(now)), known)])
    return _ordered(personas, order)


def describe(personas: Personas, traits: Sequence[Trait]) -> list[str]:
    """Each persona in a few words: what it does always, then what stands out most.

    Args:
        personas: K of them.
        traits: of each feature, D.

    Raises:
        ValueError: there are not D traits.
    """
    if len(traits) != len(personas.centre):
        raise ValueError(f"traits: {len(personas.centre)} are needed, not {len(traits)}")
    texts: list[str] = []
    for mean in personas.mean:
        named = NAMED
        while (text := _described(mean, personas, traits, named)) in texts and named < len(traits):
            named += 1
        again = sum(one == text or one.startswith(f"{text} (") for one in texts)
        texts.append(f"{text} ({again + 1})" if again else text)
    return texts


def _described(mean: Floats, personas: Personas, traits: Sequence[Trait], named: int) -> str:
    typical = mean * personas.scale + personas.centre
    words = [one.says(typical[d]) for d, one in enumerate(traits) if one.says]
    for d in np.argsort(-np.abs(mean), kind="stable")[:named]:
        if abs(mean[d]) >= STANDS_OUT and not traits[d].says:
            words.append(traits[d].high if mean[d] > 0 else traits[d].low)
    return ", ".join(words) or "average customers"


def rand_index(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """The adjusted Rand index of two labellings (N,): 1 for the same, 0 for unrelated ones."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1)

    def pairs(counts: Floats) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, first, second = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected = first * second / max(pairs(np.array([float(len(one))])), 1.0)
    most = (first + second) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _standardised(features: Rows) -> tuple[Rows, Floats, Floats]:
    if features.ndim != 2 or not len(features):
        raise ValueError("features must be (N, D) with a row at least")
    centre = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64)
    if not np.isfinite(spread).all():
        raise ValueError("features: every number must be finite")
    scale = np.where(spread > 0, spread, 1.0)
    return ((features - centre) / scale).astype(np.float32), centre, scale


def _personas(x: Rows, count: int, method: Method, seed: int, threads: int | None) -> Personas:
    """Personas of standardised features."""
    width = x.shape[1]
    if method == "kmeans":
        found = clustering.kmeans(x, count, seed=seed, threads=threads)
        variance = max(float(found.inertia) / (len(x) * width), 1e-12)
        weight, size = np.full(count, 1.0 / count), found.size
        mean, covariance = found.mean, np.full((count, width), variance)
    else:
        fitted = clustering.mixture(x, count, seed=seed, covariance=method, threads=threads)
        weight, mean, covariance = fitted.weight, fitted.mean, fitted.covariance
        size = weight * len(x)
    out = Personas(np.zeros(width), np.ones(width), weight, mean, covariance, size)
    return _ordered(out, np.argsort(-size, kind="stable"))


def _ordered(personas: Personas, order: NDArray[np.integer]) -> Personas:
    return personas._replace(
        **{
            name: getattr(personas, name)[order]
            for name in ("weight", "mean", "covariance", "size")
        }
    )


def _mixture(personas: Personas) -> clustering.Mixture:
    return clustering.Mixture(personas.weight, personas.mean, personas.covariance, np.array(np.nan))


def _tried(x: Rows, most: int, method: Method, seed: int) -> tuple[Candidate, ...]:
    """BIC and stability of 1 to ``most`` personas, on some of the rows."""
    rng = np.random.default_rng([seed, 1])
    some = x if len(x) <= CHOICE else x[rng.permutation(len(x))[:CHOICE]]
    out = []
    for count in range(1, min(most, len(some)) + 1):
        try:
            whole = _personas(some, count, method, seed, 1)
            label, agree = assign(whole, some), []
            for number in range(BOOTSTRAPS if count > 1 else 0):
                again = some[rng.integers(0, len(some), len(some))]
                other = _personas(again, count, method, number, 1)
                agree.append(rand_index(label, assign(other, some)))
        except ValueError:  # fewer distinct customers than personas
            if count == 1:
                raise
            break
        out.append(Candidate(count, _bic(whole, some, method), float(np.mean(agree or [1.0]))))
    return tuple(out)


def _bic(personas: Personas, x: Rows, method: Method) -> float:
    count, width = personas.mean.shape
    if method == "kmeans":
        whole = personas._replace(weight=np.maximum(personas.size, 1.0) / len(x))
        density = clustering.log_densities(x, _mixture(whole))
        likelihood = float(density.max(axis=1).sum())
        free = count * (width + 1)
    else:
        density = clustering.log_densities(x, _mixture(personas))
        likelihood = float(special.logsumexp(density, axis=1).sum())
        each = width if method == "diagonal" else width * (width + 1) // 2
        free = count * (width + each) + count - 1
    return float(free * np.log(len(x)) - 2.0 * likelihood)
