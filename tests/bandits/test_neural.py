"""Networks: computed without rounding, fitted to what no line fits, trained together."""

import importlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact, backend, features, ledger, policies
from bandits.regressors import neural_linear
from bandits.types import FEATURE_LIMIT, Batch, Contexts

UNITS = 16


def _log(*, rows: int = 600, seed: int = 0) -> Batch:
    """Arm 1 earns 900 where the two features have one sign, arm 0 where they have not."""
    rng = np.random.default_rng(seed)
    x, arm = rng.uniform(-1, 1, size=(rows, 2)), rng.integers(0, 2, rows).astype(np.int32)
    reward = np.where((x.prod(axis=1) > 0) == (arm == 1), 900, 100)
    one = np.ones(rows, np.int64)
    contexts = Contexts(np.zeros(rows, np.int32), features.quantise(x))
    return Batch(contexts, arm, np.full((rows, 2), 0.5), one, reward, one)


def _part(batch: Batch, rows: NDArray[np.int64], sign: int = 1) -> Batch:
    contexts = Contexts(*(field[rows] for field in batch.contexts))
    arm, simplex, conversions, reward = (field[rows] for field in batch[1:5])
    signs = np.full(len(rows), sign, np.int64)
    return Batch(contexts, arm, simplex, conversions, reward, signs)


def _model(space: backend.Backend) -> Any:
    return neural_linear.regressor(arms=2, segments=1, features=2, space=space, units=UNITS)


def test_features_are_exact_at_the_limits_on_both_backends() -> None:
    rng = np.random.default_rng(0)
    shape = neural_linear.first_weights(inputs=7, units=UNITS).shape
    weights = rng.integers(-neural_linear.WEIGHT_LIMIT, neural_linear.WEIGHT_LIMIT + 1, shape)
    weights = weights.astype(np.int32)
    x = rng.integers(-FEATURE_LIMIT, FEATURE_LIMIT + 1, size=(300, 7))
    parts = neural_linear.unpacked(weights.astype(object), inputs=7, units=UNITS)
    z = x.astype(object)
    for kernel, bias in (parts[:2], parts[2:]):
        scaled = z @ kernel + bias * features.ONE
        # Python's integers and its rounding half to even: another way to the same numbers.
        z = np.array([[round(v / 2**16) for v in row] for row in scaled.tolist()], dtype=object)
        z = np.clip(z, 0, FEATURE_LIMIT)
    for space in (backend.numpy_backend(), backend.jax_backend()):
        found = neural_linear.hidden(weights, x, units=UNITS, space=space)
        np.testing.assert_array_equal(np.asarray(found), z.astype(np.int64))


def test_the_network_that_is_trained_is_the_one_that_serves() -> None:
    backend.jax_backend()
    network: Any = importlib.import_module("bandits.regressors.network")
    import jax.numpy as jnp

    weights, log = neural_linear.first_weights(inputs=2, units=UNITS), _log()
    x = log.contexts.features
    head = np.zeros((UNITS, UNITS + 3), np.float32)
    head[:, 3:] = np.eye(UNITS)
    parameters = network._parameters(jnp.asarray(weights), jnp.asarray(head), inputs=2, units=UNITS)
    inputs = jnp.asarray(features.values(x), jnp.float32)
    theirs = network.Network(UNITS, UNITS).apply({"params": parameters}, inputs)
    ours = neural_linear.hidden(weights, x, units=UNITS, space=backend.numpy_backend())
    np.testing.assert_allclose(features.values(ours), theirs, atol=2.0**-10)


def test_it_learns_what_no_line_fits_and_its_sums_leave_no_trace() -> None:
    log, model = _log(rows=2000), _model(backend.numpy_backend())
    state = model.retrain(model.init(), log, 0)
    found = model.predict(model.believe(state), log.contexts).mean
    best = (log.contexts.features.prod(axis=1) > 0).astype(int)
    assert np.mean(found.argmax(axis=1) == best) > 0.95
    rng = np.random.default_rng(1)
    more = _log(rows=900, seed=2)
    order = rng.permutation(900)
    whole = model.update(state, _part(more, np.sort(order[180:])))
    again = state
    for shard in np.array_split(order, 7):
        again = model.update(again, _part(more, shard))
    again = model.update(again, _part(more, order[:180], sign=-1))
    assert artefact.digest(again) == artefact.digest(whole)
    other = _model(backend.jax_backend())
    same = other.update(state, _part(more, order[180:]))
    assert artefact.digest(type(same)(*(np.asarray(part) for part in same))) == artefact.digest(
        whole
    )


def test_retraining_counts_the_rows_afresh_and_starts_from_what_was_learnt() -> None:
    log, model = _log(), _model(backend.numpy_backend())
    first = model.retrain(model.init(), log, 0)
    assert artefact.digest(first) == artefact.digest(model.retrain(model.init(), log, 0))
    counted = model.update(first, _log(seed=3))
    second = model.retrain(counted, log, 1)
    np.testing.assert_array_equal(second.trials, first.trials)
    moved = np.abs(second.weights - first.weights).mean()
    assert 0 < moved < np.abs(first.weights - model.init().weights).mean()
    nothing = _part(log, np.arange(600), sign=-1)
    np.testing.assert_array_equal(model.retrain(first, nothing, 0).weights, first.weights)


def test_campaigns_trained_together_learn_each_its_own() -> None:
    one, model = _log(rows=1000), _model(backend.numpy_backend())
    other = one._replace(arm=1 - one.arm)
    empty = model.init()
    states = neural_linear.retrain_many(
        [empty, empty], [one, other], 0, arms=2, segments=1, units=UNITS
    )
    best = (one.contexts.features.prod(axis=1) > 0).astype(int)
    for state, right in zip(states, (best, 1 - best), strict=True):
        found = model.predict(model.believe(state), one.contexts).mean
        assert np.mean(found.argmax(axis=1) == right) > 0.93
    sums = ledger.add(neural_linear.sums_of(states[0]), neural_linear.sums_of(states[0]))
    np.testing.assert_array_equal(sums.trials, 2 * np.bincount(one.arm))


def test_training_lowers_for_cuda() -> None:
    backend.jax_backend()
    network: Any = importlib.import_module("bandits.regressors.network")
    import jax

    def shaped(*shape: int, kind: Any = np.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)  # type: ignore[no-untyped-call]

    size = len(neural_linear.first_weights(inputs=2, units=UNITS))
    traced = network._fit.trace(
        shaped(3, 64, 2), shaped(3, 64, kind=np.int32), shaped(3, 64),
        shaped(3, size, kind=np.int32), shaped(3, 2, UNITS + 3), shaped(3, kind=np.int32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3)),
        shaped(kind=np.int32), units=UNITS,
    )  # fmt: skip
    assert traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_number_of_units_is_an_option() -> None:
    policy = policies.make("neural_linear", arms=2, segments=3, features=4, units=5)
    assert policy.init().gram.shape == (2, 3 + 4 + 5, 3 + 4 + 5)
    with pytest.raises(ValueError, match=r"^units: "):
        policies.make("neural_linear", arms=2, segments=1, units=0)
