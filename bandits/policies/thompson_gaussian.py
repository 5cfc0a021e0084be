"""Thompson sampling for money: rewards Gaussian with unknown mean and variance.

Normal-inverse-gamma posterior of each arm (:mod:`bandits.posteriors.gaussian`); its mean reward is
a Student t, and the simplex is P(arm k has the greatest mean reward) by quadrature. Means of many
rewards are close to Gaussian whatever the rewards are, so it suits revenue.

Source: Honda and Takemura, AISTATS (2014), who require the prior shape to be bounded below;
Gelman et al., Bayesian Data Analysis, 3rd edition, section 3.3.

>>> from bandits import policies
>>> thompson = policies.make("thompson_gaussian", arms=2, segments=1)
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> thompson.probabilities(thompson.init(), contexts, np.ones((1, 2), bool)).round(9)
array([[0.5, 0.5]])
"""

import numpy as np

from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.posteriors import best
from bandits.posteriors.gaussian import posterior
from bandits.types import ArmSums, Array, Contexts, Policy

__all__ = ["SPEC", "Contexts", "np", "policy"]

SPEC = PolicySpec(
    name="thompson_gaussian",
    title="Thompson sampling (money)",
    summary="Sends more traffic to the arms that are more likely to earn most per visitor.",
    objectives=("revenue", "profit"),
    randomised=True,
    options=(
        Option("mean", "number", 0.0, -1e9, 1e9, False, "Reward per decision assumed beforehand."),
        Option("sd", "number", 1000.0, 0.0, 1e9, True, "Spread of rewards assumed beforehand."),
        Option("weight", "number", 1.0, 0.0, 1e6, True, "Decisions that the mean counts for."),
        Option("shape", "number", 1.0, 1.0, 1e6, False, "Half the decisions spread counts for."),
    ),
)


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)

    def weights(space: Backend) -> arm_level.Weights:
        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            known = posterior(space.xp, sums, **chosen)
            return best.student(known.mean, known.scale, known.freedom, mask, backend=space)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
