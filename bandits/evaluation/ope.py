"""What another policy would have earned, from logged decisions and their propensities.

Row i served arm a_i with propensity p_i and earned r_i; the target policy would have used the
simplex q_i. With ``w = q[a] / p``, a prediction ``r̂`` (N, A) of every arm's reward, and
``r̂(q) = Σ_k q_k r̂_k``, the estimate is the mean over rows of

=================  ==============================  ============================================
:func:`ips`        ``w r``                         unbiased; noisy where w is large
:func:`snips`      ``w r / mean(w)``               bounded by the rewards; biased by O(1/N)
:func:`direct`     ``r̂(q)``                        as good as the prediction
:func:`robust`     ``r̂(q) + w (r - r̂_a)``          unbiased if either p or r̂ is right
:func:`switch`     the same, w = 0 where ``w > τ``  less noise, biased by r̂ there
:func:`shrunk`     the same, ``λ w / (w² + λ)``    less noise, biased by r̂ where w is large
=================  ==============================  ============================================

``clip`` cuts w off, in every estimator: less noise, and an estimate that errs low for rewards that
are never negative (:func:`ips`). The prediction must not have seen the row's own reward: fit it on
other rows (cross-fitting) or on earlier ones (``aipw.running_means``), and then the interval also
holds, for many rows, where the logging policy learnt while it logged. The interval is Wald's, for
one look; :mod:`bandits.evaluation.choice` may be asked at any time. A target policy that learns
must be replayed, and eligibility must have been the same at logging: an arm with probability under
the target that could not be served is not seen in any log.

Source: Horvitz and Thompson, JASA 47 (1952); Swaminathan and Joachims, NeurIPS (2015), SNIPS;
Dudík et al., Statistical Science 29 (2014), doubly robust; Wang et al., ICML (2017), SWITCH; Su et
al., ICML (2020), optimistic shrinkage.

>>> rng = np.random.default_rng(0)
>>> arm = rng.integers(0, 2, 10_000)
>>> reward = (rng.random(10_000) < np.array([0.1, 0.3])[arm]).astype(np.int64)
>>> log = Log(arm, np.full(10_000, 0.5), reward)
>>> found = snips(log, np.tile([0.2, 0.8], (10_000, 1)))
>>> bool(found.lower < 0.26 < found.upper), found.usable
(True, True)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.types import Batch

Floats = NDArray[np.float64]

#: An estimate is usable with as many effective rows, and no row above this share of the weight.
LEAST_EFFECTIVE, LARGEST_SHARE = 1000.0, 0.05

#: Standard errors to either side of an interval: 95 % of a normal.
WIDTH = 1.959963984540054


class Log(NamedTuple):
    """Logged decisions, N rows.

    Attributes:
        arm: (N,) integer, the arm served.
        propensity: (N,) float64, in (0, 1], of that arm.
        reward: (N,) integer units.
    """

    arm: NDArray[np.integer]
    propensity: Floats
    reward: NDArray[np.integer]


class Value(NamedTuple):
    """Mean reward per decision under the target.

    Attributes:
        mean: the estimate.
        error: its standard error, from the spread of the rows.
        rows: N.
        effective: ``(Σw)² / Σw²``, effective rows, with the weights as used.
        largest: the largest weight's share of all.
        weight: mean weight before clipping, near 1 where the log can tell.
    """

    mean: float
    error: float
    rows: int
    effective: float
    largest: float
    weight: float

    @property
    def lower(self) -> float:
        """Lower end of the 95 % interval."""
        return self.mean - WIDTH * self.error

    @property
    def upper(self) -> float:
        """Upper end of the 95 % interval."""
        return self.mean + WIDTH * self.error

    @property
    def usable(self) -> bool:
        """Whether enough rows carry the estimate for its interval to be believed."""
        return self.effective >= LEAST_EFFECTIVE and self.largest <= LARGEST_SHARE


def logged(batch: Batch) -> Log:
    """The log of a batch whose rows all have sign +1."""
    if not bool((np.asarray(batch.sign) == 1).all()):
        raise ValueError("sign: every row of a log must have sign +1")
    arm, simplex = np.asarray(batch.arm), np.asarray(batch.simplex)
    return Log(arm, simplex[np.arange(len(arm)), arm], np.asarray(batch.reward))


def weights(log: Log, target: Floats, *, clip: float | None = None) -> Floats:
    """The importance weights (N,), cut off at ``clip``.

    Raises:
        ValueError: shapes disagree, a propensity is not in (0, 1], ``target`` is not a simplex per
            row, or ``clip`` is not above 0.
    """
    rows = len(log.arm)
    if target.ndim != 2 or len(target) != rows or log.propensity.shape != (rows,):
        raise ValueError("arm, propensity and reward (N,) and target (N, A) must have the same N")
    if log.reward.shape != (rows,) or not rows:
        raise ValueError("reward must have shape (N,), and N must be at least 1")
    if not bool(np.all((log.propensity > 0) & (log.propensity <= 1))):
        raise ValueError("propensity must be in (0, 1]")
    if bool(np.any(target < 0)) or bool(np.any(np.abs(target.sum(axis=1) - 1) > 1e-6)):
        raise ValueError("target must be a simplex in every row")
    if clip is not None and not clip > 0:
        raise ValueError("clip must be above 0")
    w: Floats = target[np.arange(rows), log.arm] / log.propensity
    return w if clip is None else np.minimum(w, clip)


def ips(log: Log, target: Floats, *, clip: float | None = None) -> Value:
    """Inverse propensity score; see :func:`weights` for the arguments."""
    w = weights(log, target, clip=clip)
    return _value(w * log.reward, w, log, target)


def snips(log: Log, target: Floats, *, clip: float | None = None) -> Value:
    """Self-normalised inverse propensity score; nan where no row has any weight."""
    w = weights(log, target, clip=clip)
    if not w.sum() > 0:
        return _value(np.full(len(w), np.nan), w, log, target)
    mean = float((w * log.reward).sum() / w.sum())
    # What each row moves the ratio by (the delta method), around the ratio itself.
    return _value(mean + w * (log.reward - mean) / w.mean(), w, log, target)


def direct(log: Log, target: Floats, predicted: Floats) -> Value:
    """Direct method: what is ``predicted`` (N, A), averaged over the target.

    Its error is of the rows' spread only: it does not know how wrong the prediction is.
    """
    w = weights(log, target)
    return _value(_expected(target, predicted), w, log, target)


def robust(log: Log, target: Floats, predicted: Floats, *, clip: float | None = None) -> Value:
    """Doubly robust, with a ``predicted`` (N, A) reward of every arm."""
    return _corrected(log, target, predicted, weights(log, target, clip=clip))


def switch(log: Log, target: Floats, predicted: Floats, *, tau: float) -> Value:
    """Doubly robust where the weight is at most ``tau``, the prediction alone elsewhere."""
    if not tau >= 0:
        raise ValueError("tau must be at least 0")
    w = weights(log, target)
    return _corrected(log, target, predicted, np.where(w <= tau, w, 0.0))


def shrunk(log: Log, target: Floats, predicted: Floats, *, strength: float) -> Value:
    """Doubly robust with weights shrunk to ``λ w / (w² + λ)``, λ = ``strength`` > 0.

    A great λ is the doubly robust estimate, a small one the direct method.
    """
    if not strength > 0:
        raise ValueError("strength must be above 0")
    w = weights(log, target)
    return _corrected(log, target, predicted, strength * w / (w * w + strength))


def _corrected(log: Log, target: Floats, predicted: Floats, w: Floats) -> Value:
    expected = _expected(target, predicted)
    residual = log.reward - predicted[np.arange(len(log.arm)), log.arm]
    return _value(expected + w * residual, w, log, target)


def _expected(target: Floats, predicted: Floats) -> Floats:
    if predicted.shape != target.shape:
        raise ValueError(f"predicted must be (N, A) = {target.shape}, not {predicted.shape}")
    found: Floats = (target * predicted).sum(axis=1)
    return found


def _value(row: Floats, w: Floats, log: Log, target: Floats) -> Value:
    total, squares = float(w.sum()), float((w**2).sum())
    return Value(
        mean=float(row.mean()),
        error=float(row.std(ddof=1) / len(row) ** 0.5) if len(row) > 1 else float("inf"),
        rows=len(row),
        effective=total**2 / squares if squares else 0.0,
        largest=float(w.max()) / total if total else 1.0,
        weight=float(weights(log, target).mean()),
    )
