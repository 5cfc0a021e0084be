"""UCB1: the arm whose average could most plausibly be the best (optimism).

Score ``r̄_k + exploration · scale · √(2 ln N / n_k)``, N = decisions in the segment; the greatest
takes all traffic (ties share). It is deterministic: without a floor its log cannot be used to
evaluate other policies. UCB1 is stated for rewards in [0, 1]; ``scale`` brings others there.
An arm without a trial comes first.

Source: Auer, Cesa-Bianchi and Fischer, Machine Learning 47 (2002).

>>> from bandits import policies
>>> ucb = policies.make("ucb1", arms=2, segments=1)
>>> state = ucb.init()._replace(trials=np.array([[90, 10]]), reward=np.array([[9, 1]]))
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> ucb.probabilities(state, contexts, np.ones((1, 2), bool))
array([[0., 1.]])
"""

import numpy as np

from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.types import ArmSums, Array, Contexts, Policy

__all__ = ["SPEC", "Contexts", "np", "policy"]

SPEC = PolicySpec(
    name="ucb1",
    title="UCB1 (optimism)",
    summary="Serves the arm whose result could most plausibly turn out best.",
    objectives=("conversion", "revenue", "profit"),
    randomised=False,
    options=(
        Option("exploration", "number", 1.0, 0.0, 100.0, False, "Strength of optimism; 1 is UCB1."),
        Option(
            "scale", "number", None, 0.0, 1e9, True,
            "Range of a reward; measured from the rewards when left out.",
        ),
    ),
)  # fmt: skip


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)

    def weights(space: Backend) -> arm_level.Weights:
        xp = space.xp

        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            trials = xp.where(sums.trials > 0, sums.trials, 1)
            everything = xp.maximum(sums.trials.sum(axis=1, keepdims=True), 1)
            unit = chosen["exploration"] * arm_level.reward_scale(xp, sums, chosen["scale"])
            bonus = unit * xp.sqrt(2.0 * xp.log(everything) / trials)
            score = arm_level.mean_reward(xp, sums) + bonus
            return arm_level.shared_among_best(xp, xp.where(sums.trials > 0, score, xp.inf), mask)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
