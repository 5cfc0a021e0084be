"""An ensemble with random priors: exact shares, agreement where there are rows, doubt elsewhere."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits import artefact, backend, features, policies
from bandits.regressors import ensemble
from bandits.types import Batch, Contexts

UNITS, MEMBERS = 16, 8


def _log(*, rows: int = 800, seed: int = 0, arms: int = 2) -> Batch:
    """Arm 1 earns 900 where the two features have one sign, arm 0 where they have not."""
    rng = np.random.default_rng(seed)
    x, arm = rng.uniform(-1, 1, size=(rows, 2)), rng.integers(0, 2, rows).astype(np.int32)
    reward = np.where((x.prod(axis=1) > 0) == (arm == 1), 900, 100)
    one = np.ones(rows, np.int64)
    contexts = Contexts(np.zeros(rows, np.int32), features.quantise(x))
    return Batch(contexts, arm, np.full((rows, arms), 1 / arms), one, reward, one)


def _model(*, arms: int = 2, **options: Any) -> Any:
    space = backend.numpy_backend()
    return ensemble.regressor(
        arms=arms, segments=1, features=2, space=space, members=MEMBERS, units=UNITS, **options
    )


def _at(x: NDArray[np.float64]) -> Contexts:
    return Contexts(np.zeros(len(x), np.int32), features.quantise(x))


def test_members_learn_a_curve_and_agree_where_there_are_rows_only() -> None:
    log, model = _log(), _model()
    state = model.retrain(model.init(), log, 0)
    found = model.predict(model.believe(state), log.contexts)
    assert found.draws.shape == (800, MEMBERS, 2)
    best = (log.contexts.features.prod(axis=1) > 0).astype(int)
    assert np.mean(found.mean.argmax(axis=1) == best) > 0.95
    far = model.predict(model.believe(state), _at(np.array([[6.0, 6.0], [-6.0, 5.0]])))
    near = found.draws.std(axis=1).mean()
    assert far.draws.std(axis=1).mean() > 3 * near


def test_without_rows_for_it_a_member_says_what_its_prior_says() -> None:
    """The prior is what makes members differ: without it they start as one."""
    log, x = _log(), _at(np.random.default_rng(1).uniform(-1, 1, size=(50, 2)))
    for prior, differs in ((0.0, False), (1.0, True)):
        model = _model(prior=prior)
        state = model.init()._replace(number=np.array([0, 1], np.int32))
        spread = model.predict(state, x).draws.std(axis=1)
        assert bool((spread > 0.05).all()) is differs
        assert bool((spread == 0).all()) is not differs
    assert (model.retrain(model.init(), log, 0).number >= 0).all()


def test_noise_of_the_rewards_keeps_members_apart() -> None:
    log, apart = _log(), []
    for spread in (1.0, 5000.0):
        model = _model(spread=spread)
        found = model.predict(model.retrain(model.init(), log, 0), log.contexts)
        apart.append(found.draws.std(axis=1).mean())
    assert apart[1] > 3 * apart[0]


def test_retraining_starts_from_what_was_learnt_and_is_a_function_of_the_log() -> None:
    log, model = _log(), _model()
    first = model.retrain(model.init(), log, 0)
    assert artefact.digest(first) == artefact.digest(model.retrain(model.init(), log, 0))
    counted = model.update(first, _log(seed=3))
    np.testing.assert_array_equal(counted.trials, first.trials + np.bincount(_log(seed=3).arm))
    second = model.retrain(counted, log, 1)
    np.testing.assert_array_equal(second.trials, first.trials)
    moved = np.abs(second.weights - first.weights).mean()
    assert 0 < moved < np.abs(first.weights - model.init().weights).mean()


def test_a_change_of_the_rewards_unit_moves_no_prediction_before_training() -> None:
    """Heads are stored in standard deviations of the rewards, which change with the log."""
    log, model = _log(), _model(prior=0.0)
    state = model.retrain(model.init(), log, 0)
    rows = ensemble.Rows(log.contexts.features, 1 - log.arm, 3 * log.reward + 500)
    other = ensemble._moved(state, rows)
    assert other.unit[0] == 3 * state.unit[0]
    before, after = (model.predict(one, log.contexts).draws for one in (state, other))
    np.testing.assert_allclose(after, before, atol=1.0)


def test_arms_names_do_not_matter_in_any_bit() -> None:
    log, model = _log(), _model()
    found = model.predict(model.retrain(model.init(), log, 0), log.contexts).draws
    swapped = model.retrain(model.init(), log._replace(arm=1 - log.arm), 0)
    other = model.predict(swapped, log.contexts).draws
    np.testing.assert_array_equal(other, found[..., ::-1])


def test_an_arm_without_rows_has_an_equal_share_until_the_next_retraining() -> None:
    policy = policies.make("neural_ensemble", arms=3, segments=1, features=2, members=MEMBERS)
    assert policy.retrain is not None
    log = _log(arms=3)
    state = policy.retrain(policy.init(), log, 0)
    mask = np.array([[True, True, True], [True, False, True], [True, True, False]])
    p = policy.probabilities(policy.believe(state), _at(np.array([[0.5, 0.5]] * 3)), mask)
    np.testing.assert_allclose(p[:, 2], [1 / 3, 1 / 2, 0.0], atol=1e-15)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-15)
    # The rest is shared out by members: whole eighths of it.
    eighths = p[0, :2] / (2 / 3) * MEMBERS
    np.testing.assert_allclose(eighths, np.rint(eighths), atol=1e-12)
    assert p[0, 1] > p[0, 0]
