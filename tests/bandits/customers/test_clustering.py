"""K-means and mixtures: the same as written out in double precision, and as good on all rows."""

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bandits.customers import clustering
from bandits.customers.clustering import Clusters, Mixture

Floats = NDArray[np.float64]


def _blobs(rows: int, *, seed: int = 0, width: int = 5, clusters: int = 4) -> Floats:
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(clusters, width))
    shares = np.arange(clusters, 0, -1) / np.arange(clusters + 1).sum()
    return centres[rng.choice(clusters, rows, p=shares)] + rng.normal(size=(rows, width))


def _inertia(x: Floats, mean: Floats) -> float:
    apart = np.square(x[:, None] - mean).sum(axis=2)
    return float(apart.min(axis=1).sum())


def _settled(x: Floats, mean: Floats) -> Floats:
    """Lloyd's passes, written out, until nothing moves."""
    while True:
        label = np.square(x[:, None] - mean).sum(axis=2).argmin(axis=1)
        moved = np.array([x[label == k].mean(axis=0) for k in range(len(mean))])
        if np.allclose(moved, mean, atol=1e-12):
            return mean
        mean = moved


def test_kmeans_is_a_fixed_point_of_lloyd() -> None:
    x = _blobs(5000)
    found = clustering.kmeans(x, 4, seed=1, tolerance=1e-12)
    assert float(found.inertia) == pytest.approx(_inertia(x, found.mean), rel=1e-5)
    np.testing.assert_allclose(_settled(x, found.mean), found.mean, atol=1e-3)
    label = clustering.nearest(x, found.mean)
    np.testing.assert_array_equal(np.bincount(label, minlength=4), found.size)


def test_the_sample_costs_no_quality() -> None:
    """More rows than the sample has: as good as passes over all rows from the true centres."""
    x = _blobs(150_000, seed=2)
    found = clustering.kmeans(x.astype(np.float32), 4, seed=3)
    rng = np.random.default_rng(2)
    best = _inertia(x, _settled(x, 1.5 * rng.normal(size=(4, 5))))
    assert _inertia(x, found.mean) <= best * (1 + 1e-6)
    assert found.size.sum() == len(x)


@pytest.mark.parametrize("fit", [clustering.kmeans, clustering.mixture])
def test_threads_and_seeds_change_what_they_should(fit: Any) -> None:
    x = _blobs(200_000, seed=4).astype(np.float32)
    one, two, again = (fit(x, 4, seed=5, threads=threads) for threads in (1, 2, 2))
    for field, other, same in zip(one, two, again, strict=True):
        np.testing.assert_array_equal(field, other)
        np.testing.assert_array_equal(other, same)


def test_far_from_the_origin_and_narrow() -> None:
    """Single precision would see nothing of these clusters but for the shift of the origin."""
    x = _blobs(3000, seed=6) / 1000 + 500
    found = clustering.kmeans(x, 4, seed=0)
    assert float(found.inertia) == pytest.approx(_inertia(x, found.mean), rel=1e-3)
    near = clustering.kmeans((x - 500) * 1000, 4, seed=0)
    assert float(found.inertia) * 1e6 == pytest.approx(float(near.inertia), rel=1e-3)


def _densities(x: Floats, found: Mixture) -> Floats:
    full = [np.diag(c) if c.ndim == 1 else c for c in found.covariance]
    return np.stack(
        [
            np.log(w) + stats.multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(found.weight, found.mean, full, strict=True)
        ],
        axis=1,
    )


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_mixture_is_a_fixed_point_of_em(covariance: Literal["diagonal", "full"]) -> None:
    x = _blobs(4000, seed=7) @ np.diag([1, 2, 0.5, 1, 3])
    found = clustering.mixture(x, 4, seed=0, covariance=covariance, tolerance=1e-9, ridge=0)
    density = _densities(x, found)
    np.testing.assert_allclose(clustering.log_densities(x, found), density, atol=1e-8)
    whole = np.logaddexp.reduce(density, axis=1)
    assert float(found.log_likelihood) == pytest.approx(whole.mean(), abs=1e-4)
    share = np.exp(density - whole[:, None])
    mean = share.T @ x / share.sum(axis=0)[:, None]
    np.testing.assert_allclose(mean, found.mean, atol=0.02)
    np.testing.assert_allclose(share.mean(axis=0), found.weight, atol=2e-3)
    for k in range(4):
        off = x - mean[k]
        exact = (share[:, k, None] * off).T @ off / share[:, k].sum()
        one = np.diag(exact) if covariance == "diagonal" else exact
        np.testing.assert_allclose(found.covariance[k], one, atol=0.05)


def test_narrow_components_are_worked_off_in_double_precision() -> None:
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.normal(0, 1, (3000, 2)), rng.normal(8, 1e-3, (3000, 2))])
    for covariance in ("diagonal", "full"):
        kind: Any = covariance
        found = clustering.mixture(x, 2, seed=0, covariance=kind, ridge=1e-9)
        exact = np.logaddexp.reduce(_densities(x, found), axis=1).mean()
        assert float(found.log_likelihood) == pytest.approx(exact, abs=1e-6)
        narrow = found.covariance[found.mean[:, 0].argmax()]
        assert float(np.sqrt(narrow.ravel()[0])) == pytest.approx(1e-3, rel=0.1)


def test_a_mixture_of_many_rows_is_as_good_as_the_truth() -> None:
    x = _blobs(150_000, seed=9)
    rng = np.random.default_rng(9)
    truth = Mixture(
        np.array([0.4, 0.3, 0.2, 0.1]), 1.5 * rng.normal(size=(4, 5)), np.ones((4, 5)), np.zeros(())
    )
    best = np.logaddexp.reduce(clustering.log_densities(x, truth), axis=1).mean()
    for covariance in ("diagonal", "full"):
        kind: Any = covariance
        found = clustering.mixture(x.astype(np.float32), 4, seed=0, covariance=kind)
        assert float(found.log_likelihood) > best - 1e-4


def test_columns_and_rows_that_say_nothing() -> None:
    x = np.column_stack([np.repeat([0.0, 1.0], 30), np.full(60, 7.0)])
    found = clustering.kmeans(x, 2, seed=0)
    assert sorted(found.size.tolist()) == [30, 30]
    for kind in ("diagonal", "full"):
        covariance: Any = kind
        mixed = clustering.mixture(x, 2, seed=0, covariance=covariance)
        assert np.isfinite(mixed.covariance).all()
        np.testing.assert_allclose(np.sort(mixed.weight), 0.5, atol=1e-6)
    with pytest.raises(ValueError, match="fewer than 3 distinct"):
        clustering.kmeans(x, 3, seed=0)
    with pytest.raises(ValueError, match="N >= k"):
        clustering.kmeans(x, 99, seed=0)


def test_a_number_that_is_none_is_refused_wherever_it_stands() -> None:
    x = _blobs(200_000, seed=10)
    x[123_457, 2] = np.nan
    for fit in (clustering.kmeans, clustering.mixture):
        found: Clusters | Mixture
        with pytest.raises(ValueError, match="finite"):
            found = fit(x, 3, seed=0)  # noqa: F841
