"""SquareCB: inverse gap weighting over what a regressor predicts.

An arm whose predicted reward is ``g`` below the best has probability ``1 / (K + γ g)``, and the
best arm the rest: closed form, no posterior needed. The gap is measured in the root mean square of
the rewards so far, and ``γ = gamma · √n`` grows with the number n of decisions learnt.

Source: Foster and Rakhlin, ICML 2020; γ growing with √n as in Foster et al., NeurIPS 2020.

>>> import numpy as np
>>> from bandits import policies
>>> from bandits.types import Contexts
>>> square = policies.make("squarecb", arms=2, segments=1, features=1)
>>> belief = square.believe(square.init())
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 1), np.int64))
>>> square.probabilities(belief, contexts, np.ones((1, 2), bool))
array([[0.5, 0.5]])
"""

from bandits import explore
from bandits.policies import gap_weighting
from bandits.policies.gap_weighting import Pace
from bandits.policies.spec import OptionValue, PolicySpec
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Policy

SPEC = PolicySpec(
    name="squarecb",
    title="SquareCB",
    summary="Gives each arm a share that falls with how much less it is predicted to earn.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=gap_weighting.OPTIONS,
    contextual=True,
    pooled=True,
)


def policy(
    *, arms: int, segments: int, features: int = 0, backend: str = "numpy", **options: OptionValue
) -> Policy:
    """The policy; options as in :data:`SPEC`."""

    def rule(prediction: Prediction, mask: Array, pace: Pace) -> Array:
        return explore.squarecb(prediction, mask, gamma=pace.gamma)

    return gap_weighting.policy(
        SPEC, rule, arms=arms, segments=segments, features=features, backend=backend, **options
    )
