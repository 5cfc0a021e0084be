"""ε-greedy: mostly the arm with the best average so far, at random the rest of the time.

``p = (1 - ε) greedy + ε / K`` over the K eligible arms; greedy shares equally among the arms of
greatest mean reward. An arm without a trial counts as best, so that each is tried.

Source: Sutton and Barto, Reinforcement Learning, 2nd edition (2018), section 2.2.

>>> from bandits import policies
>>> greedy = policies.make("epsilon_greedy", arms=2, segments=1, epsilon=0.2)
>>> state = greedy.init()._replace(trials=np.array([[9, 9]]), reward=np.array([[3, 1]]))
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> greedy.probabilities(state, contexts, np.ones((1, 2), bool))
array([[0.9, 0.1]])
"""

import numpy as np

from bandits import simplex
from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.types import ArmSums, Array, Contexts, Policy

__all__ = ["SPEC", "Contexts", "np", "policy"]

SPEC = PolicySpec(
    name="epsilon_greedy",
    title="ε-greedy",
    summary="Serves the best arm so far, and a random one for a fixed share of traffic.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option("epsilon", "number", 0.1, 0.0, 1.0, False, "Share of traffic spread at random."),
    ),
)


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)

    def weights(space: Backend) -> arm_level.Weights:
        xp = space.xp

        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            mean = arm_level.mean_reward(xp, sums)
            score = xp.where(sums.trials > 0, mean, xp.inf)
            greedy = arm_level.shared_among_best(xp, score, mask)
            return simplex.mix(greedy, simplex.uniform(mask), weight=chosen["epsilon"])

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
