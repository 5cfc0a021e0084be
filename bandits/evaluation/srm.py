"""Sample ratio test for bandits: were arms served as often as the log's propensities say?

The usual test compares counts with one fixed split and cries wolf on any bandit. Here arm k's
count is compared with the sum of its own logged propensities:
``Z_k = (N_k - Σ p_tk) / √(Σ p_tk (1 - p_tk))``, standard normal when logging is right, whatever
the policy did.

``p_value`` may be watched continuously. It comes from a betting e-process: before each row the
arms are tilted by what the log has shown so far, ``w_k = (N_k + c) / (Σ p_k + c)``, and the wealth
is multiplied by ``w_A / Σ_k p_k w_k``, whose mean is 1 if A was drawn from p. By Ville's inequality
P(wealth ever ≥ 1/α) ≤ α; the p-value is 1 / (greatest wealth so far).

Source: METHODS section 8; Lindon and Malek, Anytime-valid inference for multinomial count data
(NeurIPS 2022), with logged propensities in the place of one split.

>>> rng = np.random.default_rng(0)
>>> p = rng.dirichlet(np.ones(3), size=5000)
>>> right = (p.cumsum(axis=1) < rng.random((5000, 1))).sum(axis=1)
>>> test(right, p).p_value > 0.05
True
>>> test(np.where(rng.random(5000) < 0.1, 0, right), p).p_value < 0.001
True
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Rows that the first tilt is worth: below it the bets are small.
_CAUTION = 200.0


class SampleRatio(NamedTuple):
    """Result of :func:`test`.

    Attributes:
        served: (A,) int64, how often each arm was served.
        expected: (A,) float64, the sum of its logged propensities.
        z: (A,) float64, standard scores; 0 where there is nothing to compare.
        p_value: always-valid p-value of "arms were drawn from the logged simplex".
        impossible: rows in which the served arm had propensity 0; any makes the p-value 0.
    """

    served: NDArray[np.int64]
    expected: Floats
    z: Floats
    p_value: float
    impossible: int


def test(arm: NDArray[np.integer], simplex: Floats) -> SampleRatio:
    """Test a log of randomised decisions in the order in which they were decided.

    Args:
        arm: (N,) integer, the arm served.
        simplex: (N, A) float64 as logged.
    """
    rows, arms = simplex.shape
    if arm.shape != (rows,):
        raise ValueError("arm (N,) and simplex (N, A) must have the same N")
    served = np.bincount(arm, minlength=arms)
    expected = simplex.sum(axis=0)
    variance = np.einsum("nk,nk->k", simplex, 1.0 - simplex)
    unsure = variance > 1e-12
    z = np.where(unsure, (served - expected) / np.sqrt(np.where(unsure, variance, 1.0)), 0.0)
    impossible = int((simplex[np.arange(rows), arm] <= 0).sum())
    p_value = 0.0 if impossible else _p_value(arm, simplex)
    return SampleRatio(served, expected, z, p_value, impossible)


# The name is the field's word for it, not a test of ours to collect.
test.__test__ = False  # type: ignore[attr-defined]


def _p_value(arm: NDArray[np.integer], simplex: Floats) -> float:
    rows, arms = simplex.shape
    if rows == 0:
        return 1.0
    average, bet = np.zeros(rows), np.empty(rows)
    for k in range(arms):
        chosen = arm == k
        count = np.cumsum(chosen) - chosen
        mass = np.cumsum(simplex[:, k]) - simplex[:, k]
        tilt = (count + _CAUTION) / (mass + _CAUTION)
        average += simplex[:, k] * tilt
        bet[chosen] = tilt[chosen]
    wealth = np.cumsum(np.log(bet / average))
    return float(np.exp(-max(0.0, wealth.max())))
