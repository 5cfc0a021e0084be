"""Serving must not pay for JAX, and what is jitted must lower for a GPU that is not here."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from bandits import backend, ledger, policies
from bandits.policies import arm_level
from bandits.types import ArmSums, Batch, Contexts

SERVING = """
import sys
import numpy as np
from bandits import ledger, policies, sampling, simplex
from bandits.types import Contexts
contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
mask = np.ones((1, 3), bool)
for name in policies.NAMES:
    policy = policies.make(name, arms=3, segments=1)
    belief = policy.believe(policy.init())
    p = simplex.guard(policy.probabilities(belief, contexts, mask), mask, floor=0.01)
    sampling.draw(p[0], sampling.uniform("seed", "key"))
from bandits.evaluation import aipw, regret, srm
assert "jax" not in sys.modules
"""


def test_serving_does_not_import_jax() -> None:
    subprocess.run([sys.executable, "-c", SERVING], check=True, timeout=60)


@pytest.mark.parametrize("name", policies.NAMES)
def test_everything_jitted_lowers_for_cuda(name: str) -> None:
    space = backend.jax_backend()
    import jax

    policy = policies.make(name, arms=4, segments=3, features=2, backend="jax")

    def shaped(shape: tuple[int, ...], kind: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)  # type: ignore[no-untyped-call]

    empty = policy.init()
    state = type(empty)(*(shaped(field.shape, field.dtype) for field in empty))
    contexts = Contexts(shaped((8,), np.int32), shaped((8, 2), np.int64))
    mask = shaped((8, 4), np.bool_)
    rows = [shaped((8,), np.int64) for _ in range(3)]
    batch = Batch(contexts, shaped((8,), np.int32), shaped((8, 4), np.float64), *rows)

    def serve(state: Any, contexts: Contexts, mask: Any) -> Any:
        return policy.probabilities(policy.believe(state), contexts, mask)

    if policies.describe(name).hosted:
        belief = policy.believe(empty)
        decide = jax.jit(policy.probabilities).trace(belief, contexts, mask)
    else:
        decide = jax.jit(serve).trace(state, contexts, mask)
    assert decide.lower(lowering_platforms=("cuda",)).as_text()
    learn = jax.jit(policy.update).trace(state, batch)
    assert "f32" not in learn.lower(lowering_platforms=("cuda",)).as_text()
    assert space.name == "jax"


def test_unknown_backends_and_narrow_states_are_refused() -> None:
    with pytest.raises(ValueError, match="backend"):
        backend.named("torch")
    policy = policies.make("ucb1", arms=2, segments=1)
    narrow = ArmSums(*(x.astype(np.int32) for x in ledger.zeros(segments=1, arms=2)))
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
    with pytest.raises(TypeError, match=r"state\.trials"):
        policy.probabilities(narrow, contexts, np.ones((1, 2), dtype=bool))


def test_distinct_rows_are_found_for_many_arms_too() -> None:
    rng = np.random.default_rng(0)
    for arms in (3, 32, 40):
        segment = rng.integers(0, 3, 50)
        mask = np.zeros((50, arms), dtype=bool)
        mask[np.arange(50), rng.integers(0, 2, 50) * (arms - 1)] = True
        first, inverse = arm_level.distinct(segment, mask)
        assert len(first) <= 6
        np.testing.assert_array_equal(segment[first][inverse], segment)
        np.testing.assert_array_equal(mask[first][inverse], mask)
