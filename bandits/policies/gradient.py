"""Softmax gradient bandit: preferences follow the gradient of the mean reward.

REINFORCE with baseline moves the preferences H by ``α (r - b)(e_a - p)``. Here every term is taken
at the *logged* simplex p and the baseline is the segment's mean reward b̄, so the preferences are
``H = α (Σ r (e_a - p) - b̄ Σ (e_a - p)) / scale``: a function of additive integer sums, the same
in whatever order decisions and late rewards arrive. Traffic is softmax(H) over the eligible arms.
The textbook form uses the baseline of the moment; with this one all past terms are re-centred.

Source: Williams, Machine Learning 8 (1992); Sutton and Barto, 2nd edition (2018), section 2.8.

>>> from bandits import policies
>>> gradient = policies.make("gradient", arms=2, segments=1, step=0.5)
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> one = np.ones(1, np.int64)
>>> half = np.array([[0.5, 0.5]])
>>> won = Batch(contexts, np.zeros(1, np.int32), half, one, one, one)
>>> lost = won._replace(arm=np.ones(1, np.int32), conversions=0 * one, reward=0 * one)
>>> state = gradient.update(gradient.update(gradient.init(), won), lost)
>>> gradient.probabilities(state, contexts, np.ones((1, 2), bool)).round(3)
array([[0.622, 0.378]])
"""

import numpy as np

from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.types import SCORE_BITS, ArmSums, Array, Batch, Contexts, Policy

__all__ = ["SPEC", "Batch", "Contexts", "np", "policy"]

SPEC = PolicySpec(
    name="gradient",
    title="Softmax gradient bandit",
    summary="Shifts traffic step by step towards arms that pay more than average.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option("step", "number", 0.1, 0.0, 10.0, True, "Size of a step for one unit of reward."),
        Option(
            "scale", "number", None, 0.0, 1e9, True,
            "One unit of reward; measured from the rewards when left out.",
        ),
    ),
)  # fmt: skip


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)

    def weights(space: Backend) -> arm_level.Weights:
        xp = space.xp

        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            everything = sums.trials.sum(axis=1, keepdims=True)
            everything = xp.where(everything > 0, everything, 1)
            baseline = sums.reward.sum(axis=1, keepdims=True) / everything
            unit = arm_level.reward_scale(xp, sums, chosen["scale"]) * 2.0**SCORE_BITS
            preference = chosen["step"] * (sums.score_reward - baseline * sums.score) / unit
            eligible = xp.where(mask, preference, -xp.inf)
            raised = xp.exp(eligible - eligible.max(axis=1, keepdims=True))
            return raised / raised.sum(axis=1, keepdims=True)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
