"""Personas: as many as there are, the same when fitted again, in words, and served without JAX."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact
from bandits.customers import personas
from bandits.customers.personas import (
    DISCOUNT_SHARE,
    GAP,
    RECENCY,
    SPEND,
    Personas,
    Trait,
)

Floats = NDArray[np.float64]
TRAITS = [GAP, SPEND, DISCOUNT_SHARE]


def _customers(rows: int, *, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Three kinds of customers: log gap, log spend, discount share; and the kind of each."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, rows, p=[0.5, 0.3, 0.2])
    middle = np.array([[np.log(7), 4.5, 0.05], [np.log(30), 3.0, 0.4], [np.log(90), 2.0, 0.1]])
    return middle[kind] + rng.normal(size=(rows, 3)) * [0.25, 0.3, 0.06], kind


@pytest.fixture(scope="module")
def found() -> personas.Found:
    return personas.fit(_customers(6000)[0], seed=0)


def test_as_many_as_there_are(found: personas.Found) -> None:
    assert len(found.personas.mean) == 3
    assert [one.number for one in found.tried] == list(range(1, 9))
    assert found.tried[2].stability > 0.95
    assert min(one.stability for one in found.tried[3:]) < personas.STABLE
    np.testing.assert_allclose(found.personas.size / 6000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("method", ["kmeans", "diagonal", "full"])
def test_every_customer_finds_his_kind(method: personas.Method) -> None:
    x, kind = _customers(6000, seed=1)
    fitted = personas.fit(x[:3000], seed=0, count=3, method=method).personas
    assigned = personas.assign(fitted, x[3000:])
    assert personas.rand_index(assigned, kind[3000:]) > 0.97
    kept = artefact.to_bytes(fitted, policy="personas")
    artefact.from_bytes(kept, like=personas.EMPTY[fitted.covariance.ndim])
    share = personas.memberships(fitted, x[3000:])
    np.testing.assert_allclose(share.sum(axis=1), 1.0)
    np.testing.assert_array_equal(share.argmax(axis=1), assigned)
    assert personas.assign(fitted, x[3000:3001])[0] == assigned[0]


def test_like_customers_stay_one_persona() -> None:
    """BIC would go on splitting what is not Gaussian; splits that do not come back are refused."""
    x = np.random.default_rng(2).exponential(size=(2000, 3))
    one = personas.fit(x, seed=0, method="diagonal", most=5)
    best = min(one.tried, key=lambda each: each.bic)
    assert best.number > len(one.personas.mean)
    assert best.stability < personas.STABLE


def test_in_words(found: personas.Found) -> None:
    words = personas.describe(found.personas, TRAITS)
    assert words == [
        "buys weekly, high spend, pays the full price",
        "buys monthly, price-sensitive, low spend",
        "buys quarterly, low spend",
    ]
    with pytest.raises(ValueError, match="3 are needed"):
        personas.describe(found.personas, TRAITS[:2])


def test_two_personas_never_share_a_description() -> None:
    mean = np.array([[1.0, 0.9, 0.8, 0.7], [1.0, 0.9, 0.8, -0.7], [0.1, 0, 0, 0], [0.2, 0, 0, 0]])
    one = Personas(np.zeros(4), np.ones(4), np.ones(4) / 4, mean, np.ones((4, 4)), np.ones(4))
    traits = [Trait(f"low {name}", f"high {name}") for name in "abcd"]
    assert personas.describe(one, traits) == [
        "high a, high b, high c",
        "high a, high b, high c, low d",
        "average customers",
        "average customers (2)",
    ]


def test_a_refit_keeps_the_numbers(found: personas.Found) -> None:
    x, _ = _customers(6000, seed=3)
    again = personas.fit(x, seed=9, count=4).personas
    shuffled = personas._ordered(again, np.array([2, 0, 3, 1]))
    kept = personas.aligned(shuffled, found.personas)
    same = personas.assign(kept, x) == personas.assign(found.personas, x)
    assert same.mean() > 0.7  # the fourth persona has taken its share from one of the three
    middle = found.personas.mean * found.personas.scale + found.personas.centre
    np.testing.assert_array_equal(personas.assign(kept, middle), [0, 1, 2])
    assert kept.size.sum() == 6000


def test_stored_like_any_state(found: personas.Found) -> None:
    kept = artefact.to_bytes(found.personas, policy="personas")
    back = artefact.from_bytes(kept, like=personas.EMPTY[2])
    assert artefact.digest(back) == artefact.digest(found.personas)
    again = personas.fit(_customers(6000)[0], seed=0, count=3).personas
    assert artefact.digest(again) == artefact.digest(found.personas)


def test_rfm_is_logarithms() -> None:
    x = personas.log_rfm(np.array([0.0, 9.0]), np.array([1.0, 3.0]), np.array([0.0, 99.0]))
    np.testing.assert_allclose(x, np.log([[1, 2, 1], [10, 4, 100]]))
    with pytest.raises(ValueError, match="at least 0"):
        personas.log_rfm(np.array([-1.0]), np.ones(1), np.ones(1))
    assert RECENCY.low == "bought recently"


def test_the_rand_index() -> None:
    one = np.array([0, 0, 1, 1, 2, 2])
    assert personas.rand_index(one, (one + 1) % 3) == 1.0
    crossed = personas.rand_index(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert crossed == pytest.approx(-0.5)
    # The example of scikit-learn's user guide: 0.24242...
    assert personas.rand_index(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 2, 2])) == (
        pytest.approx(0.242424, abs=1e-6)
    )


def test_what_serving_needs_imports_no_jax() -> None:
    modules = "clv, elasticity, personas, propensity"
    code = f"import sys; from bandits.customers import {modules}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
