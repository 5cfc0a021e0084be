"""An epinet: its mean fits, its doubt goes where rows are, its draws are frozen."""

import importlib
from typing import Any

import numpy as np

from bandits import artefact, backend, features
from bandits.regressors import epinet
from bandits.types import Contexts
from tests.bandits.test_ensemble import _at, _log

UNITS = 16


def _model(**options: Any) -> Any:
    space = backend.numpy_backend()
    return epinet.regressor(arms=2, segments=1, features=2, space=space, units=UNITS, **options)


def test_it_learns_a_curve_and_doubts_where_there_are_no_rows() -> None:
    log, model = _log(), _model()
    state = model.retrain(model.init(), log, 0)
    found = model.predict(model.believe(state), log.contexts)
    assert found.draws.shape == (800, epinet.INDICES, 2)
    best = (log.contexts.features.prod(axis=1) > 0).astype(int)
    assert np.mean(found.mean.argmax(axis=1) == best) > 0.95
    far = model.predict(model.believe(state), _at(np.array([[6.0, 6.0], [-6.0, 5.0]])))
    assert far.draws.std(axis=1).mean() > 3 * found.draws.std(axis=1).mean()


def test_doubt_begins_at_the_prior_and_ends_with_rows() -> None:
    x = _at(np.random.default_rng(1).uniform(-1, 1, size=(200, 2)))
    model = _model(spread=500.0)
    start = model.init()._replace(number=np.array([0, 1], np.int32), unit=np.full(1, 400.0))
    assert not _model(prior=0.0).predict(start, x).draws.std(axis=1).any()
    doubts = [model.predict(start, x).draws.std(axis=1).mean()]
    for rows in (100, 1600):
        state = model.retrain(model.init(), _log(rows=rows), 0)
        doubts.append(model.predict(state, x).draws.std(axis=1).mean())
    assert doubts[2] < 0.7 * doubts[1]


def test_retraining_starts_from_what_was_learnt_and_is_a_function_of_the_log() -> None:
    log, model = _log(), _model()
    first = model.retrain(model.init(), log, 0)
    assert artefact.digest(first) == artefact.digest(model.retrain(model.init(), log, 0))
    second = model.retrain(first, log, 1)
    np.testing.assert_array_equal(second.trials, np.bincount(log.arm))
    moved = np.abs(second.weights - first.weights).mean()
    assert 0 < moved < np.abs(first.weights - model.init().weights).mean()
    swapped = model.retrain(model.init(), log._replace(arm=1 - log.arm), 0)
    mine, other = (model.predict(one, log.contexts).draws for one in (first, swapped))
    np.testing.assert_allclose(other, mine[..., ::-1], atol=1e-9)


def test_the_epinet_that_is_trained_is_the_one_that_serves() -> None:
    """After training, the loss that was minimised is that of the served draws."""
    log, model = _log(rows=4000), _model(prior=0.0, spread=1e-6)
    state = model.retrain(model.init(), log, 0)
    found = model.predict(state, Contexts(log.contexts.segment, log.contexts.features))
    missed = found.draws[np.arange(4000), :, log.arm] - log.reward[:, None]
    # Without prior and noise, the draws are told to agree with each other and with the rewards.
    assert missed.std() < 1.5 * state.residual[0]
    assert state.residual[0] < 0.5 * log.reward.std()


def test_training_lowers_for_cuda() -> None:
    backend.jax_backend()
    network: Any = importlib.import_module("bandits.regressors.network")
    import jax

    model, log = _model(), _log(rows=64)
    state, x = model.init(), features.values(log.contexts.features).astype(np.float32)
    job = epinet.EpinetJob(
        x, log.arm, x[:, 0], np.zeros((64, epinet.SIZE), np.float32), state.weights,
        state.head.astype(np.float32), state.inner.astype(np.float32),
        state.outer.astype(np.float32),
    )  # fmt: skip
    traced = network._fit_epinet.trace(job, np.int32(64), jax.random.key(0), 200, units=UNITS)
    assert traced.lower(lowering_platforms=("cuda",)).as_text()
