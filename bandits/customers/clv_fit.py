"""The half of :mod:`bandits.customers.clv` that fits: likelihoods and their derivatives, in JAX.

In a module of its own, imported by name, so that serving does not reach JAX. Customers with equal
histories are counted instead of repeated. The likelihood is maximised over the logarithms of the
parameters: a quasi-Newton search, then Newton's steps until the gradient vanishes. Gradients are
exact; the curvature is their central difference, good to eight digits and several times as fast to
compile as second derivatives of Γ. The covariance is the inverse of the observed information,
carried over from the logarithms (delta method).

Source: Fader, Hardie and Lee (2005), appendix; Nocedal and Wright, "Numerical optimization" (2006).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln, gammaln
from numpy.typing import NDArray
from scipy import optimize

from bandits.backend import jax_backend
from bandits.customers.clv import Buying, Floats, History, Spending
from bandits.types import Array

#: ``(logarithms of the parameters, *columns of distinct rows) -> (rows,) log likelihoods``.
Likelihood = Callable[..., Array]

#: Newton's steps at most, the gradient per customer that ends them, and how far from 1 parameters
#: may be in their logarithms before there is taken to be no maximum.
STEPS, FLAT, FAR = 50, 1e-10, 15.0
#: Half the distance of the gradients whose difference is the curvature.
ASIDE = 1e-4
#: Distinct histories that any are filled up to.
SMALLEST = 1 << 10


def buying(history: History) -> Buying:
    """As :func:`bandits.customers.clv.fit_buying`."""
    if not (history.frequency > 0).any():
        raise ValueError("history: nobody came back, which says nothing of how often they do")
    rows = np.stack([history.frequency, history.recency, history.age])
    # In a unit of time in which ages are about 1, so that the search starts near the answer.
    unit = float(history.age.mean())
    rows[1:] /= unit
    estimate, covariance, height = _maximum(_buying, rows, start=np.array([1.0, 1.0, 1.0, 1.0]))
    scale = np.array([1.0, unit, 1.0, 1.0])
    height -= float(history.frequency.sum()) * np.log(unit)
    return Buying(estimate * scale, covariance * np.outer(scale, scale), np.array(height))


def spending(history: History) -> Spending:
    """As :func:`bandits.customers.clv.fit_spending`."""
    back = (history.frequency > 0) & (history.spend > 0)
    if back.sum() < 2 or np.ptp(history.spend[back]) == 0:
        raise ValueError("history: too few came back, or all spend the same")
    x, mean = history.frequency[back], history.spend[back]
    unit = float(mean.mean())
    rows = np.stack([x, mean / unit])
    estimate, covariance, height = _maximum(_spending, rows, start=np.array([2.0, 2.0, 1.0]))
    scale = np.array([1.0, 1.0, unit])
    height -= len(x) * np.log(unit)
    together = float(np.corrcoef(x, mean)[0, 1]) if np.ptp(x) > 0 else 0.0
    covariance = covariance * np.outer(scale, scale)
    return Spending(estimate * scale, covariance, np.array(height), np.array(together))


def _buying(logs: Array, x: Array, last: Array, age: Array) -> Array:
    r, alpha, a, b = jnp.exp(logs)
    level = gammaln(r + x) - gammaln(r) + r * jnp.log(alpha) + betaln(a, b + x) - betaln(a, b)
    staying = -(r + x) * jnp.log(alpha + age)
    gone = jnp.log(a / (b + jnp.maximum(x, 1.0) - 1.0)) - (r + x) * jnp.log(alpha + last)
    return level + jnp.where(x > 0, jnp.logaddexp(staying, gone), staying)


def _spending(logs: Array, x: Array, mean: Array) -> Array:
    p, q, v = jnp.exp(logs)
    level = gammaln(p * x + q) - gammaln(p * x) - gammaln(q) + q * jnp.log(v)
    seen = (p * x - 1.0) * jnp.log(mean) + p * x * jnp.log(x)
    return level + seen - (p * x + q) * jnp.log(v + x * mean)


def _maximum(likelihood: Likelihood, rows: Floats, *, start: Floats) -> tuple[Floats, Floats, Any]:
    """The parameters of greatest likelihood, their covariance, and the log likelihood there."""
    jax_backend()  # 64-bit mode: in float32 the search stops three digits too soon
    distinct, count = _counted(rows)
    customers = float(rows.shape[1])
    columns, weight = jnp.asarray(distinct), jnp.asarray(count / customers)

    def both(logs: Floats) -> tuple[float, Floats]:
        loss, slope = _loss(likelihood, logs, columns, weight)
        return float(loss), np.asarray(slope)

    found = optimize.minimize(
        both, np.log(start), jac=True, method="L-BFGS-B", bounds=[(-FAR, FAR)] * len(start),
        options={"ftol": 1e-12, "gtol": 1e-8, "maxiter": 500},
    )  # fmt: skip
    logs, curve = _polished(found.x, lambda at: both(at)[1])
    estimate = np.exp(logs)
    covariance = np.linalg.inv(curve) / customers * np.outer(estimate, estimate)
    return estimate, covariance, -both(logs)[0] * customers


@functools.partial(jax.jit, static_argnums=0)
def _loss(likelihood: Likelihood, logs: Array, columns: Array, weight: Array) -> Any:
    """Less the mean log likelihood, and its gradient; compiled once per likelihood and size."""
    return jax.value_and_grad(lambda at: -(weight * likelihood(at, *columns)).sum())(logs)


def _polished(logs: Floats, gradient: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """Newton's steps to where the gradient vanishes, and the curvature there."""
    for _ in range(STEPS):
        slope, curve = gradient(logs), _curvature(logs, gradient)
        steep = np.linalg.eigvalsh(curve)
        if np.abs(logs).max() >= FAR or not steep[0] > 1e-7 * steep[-1]:
            raise ValueError("history: the likelihood has no maximum; the customers are too alike")
        if np.abs(slope).max() < FLAT:
            return logs, curve
        logs = logs - np.clip(np.linalg.solve(curve, slope), -1.0, 1.0)
    raise ValueError("history: the search for the greatest likelihood did not end")


def _curvature(logs: Floats, gradient: Callable[[Floats], Floats]) -> Floats:
    steps = ASIDE * np.eye(len(logs))
    rows = [gradient(logs + step) - gradient(logs - step) for step in steps]
    curve = np.stack(rows) / (2.0 * ASIDE)
    out: Floats = (curve + curve.T) / 2.0
    return out


def _counted(rows: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct columns of ``rows`` (K, N), and how often each is there.

    Filled up to a power of two with columns that are there no times, so that little is compiled.
    """
    ordered = rows[:, np.lexsort(rows)]
    fresh = np.ones(rows.shape[1], bool)
    fresh[1:] = (np.diff(ordered, axis=1) != 0).any(axis=0)
    first = np.flatnonzero(fresh)
    count = np.diff(np.append(first, rows.shape[1]))
    fill = max(SMALLEST, 1 << (len(first) - 1).bit_length()) - len(first)
    return np.pad(ordered[:, first], ((0, 0), (0, fill)), mode="edge"), np.pad(count, (0, fill))
