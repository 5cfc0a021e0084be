"""NeuralTS: its squared gradients are those that JAX finds."""

from typing import Any

import numpy as np

from bandits import backend
from tests.bandits.test_ensemble import _log
from tests.bench.policies import neural_gradient
from tests.bench.policies.neural_gradient import UNITS


def test_squared_gradients_and_their_sums_are_those_of_automatic_differentiation() -> None:
    backend.jax_backend()
    import jax
    import jax.numpy as jnp

    from bandits.regressors import neural_linear

    model, log = neural_gradient.regressor(arms=2, segments=1, features=2, ridge=1.0), _log(rows=40)
    assert model.retrain is not None
    state = model.retrain(model.init(), _log(rows=300), 0)
    x = neural_gradient._design(log.contexts, 1)

    def output(weights: Any, head: Any, row: Any) -> Any:
        one, first, two, second = neural_linear.unpacked(weights, inputs=2, units=UNITS)
        z = jax.nn.relu(jax.nn.relu(row[1:] @ one + first) @ two + second)
        return jnp.concatenate([row, z]) @ head

    real = [part / 2.0**16 for part in (state.weights, state.head)]
    by_row = jax.vmap(jax.grad(output, argnums=(0, 1)), in_axes=(None, 0, 0))
    layers, heads = (np.asarray(p) ** 2 / UNITS for p in by_row(real[0], real[1][log.arm], x))
    empty = state._replace(seen_layers=0 * state.seen_layers, seen_head=0 * state.seen_head)
    found = model.update(empty, log)
    np.testing.assert_allclose(found.seen_layers, layers.sum(axis=0), rtol=1e-9)
    for arm in (0, 1):
        np.testing.assert_allclose(found.seen_head[arm], heads[log.arm == arm].sum(axis=0))
    variance = (layers / (1.0 + found.seen_layers)).sum(axis=1)
    variance += (heads / (1.0 + found.seen_head[log.arm])).sum(axis=1)
    scale = model.predict(found, log.contexts).scale[np.arange(40), log.arm]
    np.testing.assert_allclose(scale, state.unit[0] * np.sqrt(variance), rtol=1e-9)


def test_it_learns_a_curve_under_both_rules() -> None:
    log = _log(rows=900)
    best = (log.contexts.features.prod(axis=1) > 0).astype(int)
    for rule in ("thompson", "ucb"):
        policy = neural_gradient.policy(arms=2, segments=1, features=2, rule=rule)
        assert policy.retrain is not None
        state = policy.retrain(policy.init(), log, 0)
        p = policy.probabilities(policy.believe(state), log.contexts, np.ones((900, 2), bool))
        assert p[np.arange(900), best].mean() > 0.9
