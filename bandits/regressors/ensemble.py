"""Networks that disagree where little was seen: an ensemble with random priors.

Each of M members is a network with a last layer, plus a **prior** that is never trained: random
coefficients over random features, other ones for each member. A member is fitted to what the prior
leaves of the rewards, each reward with noise added that belongs to this member and row for good.
Where there are rows, the sum follows them; where there are none, it is what the prior says there.
For linear members that is exactly a draw from the posterior; for networks it stands for one.

A member is a frozen draw, so P(arm is best) is the share of the members that it is best in: exact
by construction, in steps of 1/M. Everything is fitted by ``retrain``, all members in one compiled
call (:mod:`bandits.regressors.network`); between two retrainings nothing is learnt. Members are
computed in integers, as :mod:`bandits.regressors.neural_linear` has it: the same on every machine.

Which prior an arm has goes by the order in which arms first appear in the rows, so that their names
do not matter. An arm without rows has no belief, and no draws that mean anything.

Source: Osband, Aslanides and Cassirer, NeurIPS 2018 (randomised prior functions); Lu and Van Roy,
NeurIPS 2017 (ensemble sampling); the noise, Osband, Van Roy and Wen, ICML 2016 (RLSVI).

Letters: ``M`` members, ``I`` inputs, ``H`` units of a layer, ``P`` columns of the last layer, else
as in :mod:`bandits.types`.
"""

import functools
import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import ledger
from bandits.backend import Backend, numpy_backend
from bandits.features import ONE
from bandits.regressors import linear, neural_linear
from bandits.regressors.neural_linear import UNITS, WEIGHT_BITS, WEIGHT_LIMIT, Job
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import Array, Batch, Contexts

#: Members, and how large their priors are, in standard deviations of the rewards.
MEMBERS, PRIOR = 10, 1.0


class EnsembleState(NamedTuple):
    """What was counted, and what was fitted.

    Attributes:
        trials: (A,) int64, decisions counted.
        reward: (A,) int64, sum of their rewards.
        square_high: (A,) int64, sum of ``r*r >> 32``.
        square_low: (A,) int64, sum of ``r*r & (2**32 - 1)``.
        number: (A,) int32, the place of an arm among those of the rows of the fit; -1 if it had
            none.
        weights: (M, W) int32 in 2**-16, the members' layers.
        heads: (M, A, P) int32 in 2**-16, their last layers, arms in the order of ``number``.
        centre: (1,) float64, mean of the rewards of the fit.
        unit: (1,) float64, their standard deviation.
        residual: (1,) float64, that of what the members' mean left of them.
    """

    trials: Array
    reward: Array
    square_high: Array
    square_low: Array
    number: Array
    weights: Array
    heads: Array
    centre: Array
    unit: Array
    residual: Array


class Priors(NamedTuple):
    """What the members' priors are made of: shared layers (W,) and heads (M, A, P), both int32."""

    weights: NDArray[np.int32]
    heads: NDArray[np.int32]


class Rows(NamedTuple):
    """What is fitted: a design (N, P - H) int64 in 2**-12, arms (N,) and rewards (N,)."""

    x: NDArray[np.int64]
    arm: NDArray[np.int32]
    reward: NDArray[np.int64]


def regressor(
    *,
    arms: int,
    segments: int,
    features: int,
    space: Backend,
    members: int = MEMBERS,
    units: int = UNITS,
    prior: float = PRIOR,
    spread: float | None = None,
) -> Regressor:
    """The regressor; its belief is its state.

    Args:
        arms: A.
        segments: S.
        features: D.
        space: the namespace.
        members: M.
        units: H.
        prior: how large the priors are, in standard deviations of the rewards.
        spread: the standard deviation of the noise that is added to rewards; that of the residuals
            of the last fit when left out.
    """
    inputs = linear.columns(segments=segments, features=features) - 1
    shape = (members, arms, 1 + inputs + units)
    first = functools.partial(neural_linear.first_weights, inputs=inputs, units=units)
    # Integers, so that a member and its prior are added without rounding.
    numbers = np.random.default_rng(0).normal(scale=prior / np.sqrt(shape[-1]), size=shape)
    priors = Priors(first(), neural_linear.packed([numbers]).reshape(shape))

    def init() -> EnsembleState:
        none, weights = np.zeros(arms, np.int64), [first(seed=m) for m in range(1, members + 1)]
        return EnsembleState(
            none, none, none, none, np.full(arms, -1, np.int32), np.stack(weights),
            np.zeros(shape, np.int32), np.zeros(1), np.ones(1), np.zeros(1),
        )  # fmt: skip

    def update(state: EnsembleState, batch: Batch) -> EnsembleState:
        flat = batch._replace(contexts=batch.contexts._replace(segment=batch.contexts.segment * 0))
        sums = ledger.contribution(flat, segments=1, arms=arms, backend=space)
        names = EnsembleState._fields[:4]
        return state._replace(**{n: getattr(state, n) + getattr(sums, n)[0] for n in names})

    def predict(state: EnsembleState, contexts: Contexts) -> Prediction:
        x = linear.design(contexts, segments=segments, space=space)
        draws = _rewards(state, x, priors, units=units, space=space)
        return Prediction(draws.mean(axis=1), draws=draws)

    def retrain(state: EnsembleState, batch: Batch, seed: int) -> EnsembleState:
        kept = np.asarray(batch.sign) > 0
        x = linear.design(batch.contexts, segments=segments, space=numpy_backend())[kept]
        arm, reward = np.asarray(batch.arm)[kept], np.asarray(batch.reward)[kept]
        state = EnsembleState(*(np.asarray(field) for field in state))
        none = np.zeros(arms, np.int64)
        state = state._replace(trials=none, reward=none, square_high=none, square_low=none)
        if len(arm):
            rows = Rows(x, arm, reward)
            state = _fitted(state, rows, priors, spread=spread, seed=seed, units=units)
        return update(state, batch)

    return Regressor("ensemble", init, update, lambda state: state, predict, None, retrain)


def _rewards(
    state: EnsembleState, x: Array, priors: Priors, *, units: int, space: Backend
) -> Array:
    """What every member expects of rows x (B, P - H) int64 in 2**-12: (B, M, A) in rewards."""
    xp = space.xp
    place = xp.maximum(xp.asarray(state.number), 0)
    own, heads = (xp.asarray(part)[:, place] for part in (priors.heads, state.heads))
    weights = xp.asarray(state.weights)

    def output(layers: Array, head: Array) -> Array:
        z = neural_linear.hidden(layers, x[:, 1:], units=units, space=space)
        columns = xp.concatenate([x, z], axis=1).astype(xp.float64)
        return columns @ head.reshape(-1, columns.shape[1]).astype(xp.float64).T

    old = output(priors.weights, own).reshape(x.shape[0], *own.shape[:2])
    new = xp.stack([output(weights[m], heads[m]) for m in range(own.shape[0])], axis=1)
    standard = (old + new) / float(ONE << WEIGHT_BITS)
    return xp.asarray(state.centre) + xp.asarray(state.unit) * standard


def _fitted(
    state: EnsembleState, rows: Rows, priors: Priors, *,
    spread: float | None, seed: int, units: int,
) -> EnsembleState:  # fmt: skip
    """The members fitted to the rows, starting from what they were; nothing is counted."""
    space, members = numpy_backend(), len(state.weights)
    state = _moved(state, rows)
    noise = spread or float(state.residual[0] or state.unit[0])
    taken = (np.arange(len(rows.arm)), slice(None), rows.arm)
    bare = state._replace(heads=0 * state.heads)
    known = _rewards(bare, rows.x, priors, units=units, space=space)[taken]
    target = (rows.reward[:, None] - known) / state.unit
    # Row by row, so that a row has the same noise when the log has grown.
    target += noise / state.unit * np.random.default_rng(1).normal(size=target.shape)
    inputs, arm = (rows.x[:, 1:] / float(ONE)).astype(np.float32), state.number[rows.arm]
    heads = (state.heads / float(1 << WEIGHT_BITS)).astype(np.float32)
    jobs = [
        Job(inputs, arm, target[:, m].astype(np.float32), state.weights[m], heads[m])
        for m in range(members)
    ]
    # By name: only fitting needs JAX and Flax, and a server that only serves never reaches them.
    network: Any = importlib.import_module("bandits.regressors.network")
    weights, heads = zip(*network.fit_many(jobs, seed, units=units), strict=True)
    state = state._replace(weights=np.stack(weights), heads=np.stack(heads))
    mean = _rewards(state, rows.x, priors, units=units, space=space)[taken].mean(axis=1)
    return state._replace(residual=np.array([np.sqrt(np.mean((rows.reward - mean) ** 2))]))


def _moved(state: EnsembleState, rows: Rows) -> EnsembleState:
    """The same predictions with the arms numbered, and the rewards measured, as in the rows."""
    seen, at = np.unique(rows.arm, return_index=True)
    number = np.full(state.number.shape, -1, np.int32)
    number[seen[np.argsort(at)]] = np.arange(len(seen))
    centre, unit = np.array([rows.reward.mean()]), np.array([rows.reward.std() or 1.0])
    kept = (state.number >= 0) & (number >= 0)
    known = state.heads[:, state.number[kept]] * (state.unit / unit)
    known[..., 0] += (state.centre - centre) / unit * (1 << WEIGHT_BITS)
    heads = np.zeros_like(state.heads)
    heads[:, number[kept]] = np.clip(np.rint(known), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    return state._replace(number=number, heads=heads, centre=centre, unit=unit)
