"""LinUCB: the arm whose reward could be greatest, by an upper confidence bound.

The reward of arm a is linear in the context (:mod:`bandits.regressors.linear`); the arm with the
greatest ``mean + alpha · scale`` is served. Arms may share their coefficients (option ``sharing``,
:mod:`bandits.regressors.linear_shared`). The choice is deterministic, so without a floor its log
cannot be used for off-policy evaluation.

Source: Li et al., WWW 2010.

>>> import numpy as np
>>> from bandits import policies
>>> from bandits.types import Contexts
>>> linear = policies.make("linear_ucb", arms=2, segments=1, features=1)
>>> belief = linear.believe(linear.init())
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 1), np.int64))
>>> linear.probabilities(belief, contexts, np.ones((1, 2), bool)).round(9)
array([[0.5, 0.5]])
"""

from bandits import backend as backends
from bandits import explore
from bandits.policies import contextual, linear_options
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Belief, Policy

SPEC = PolicySpec(
    name="linear_ucb",
    title="LinUCB",
    summary=(
        "Learns how each arm's reward changes with the context, and "
        "serves the arm that could be best."
    ),
    objectives=("conversion", "revenue", "profit"),
    randomised=False,
    options=(
        Option(
            "alpha", "number", 1.5, 0.0, 1e3, False,
            "Standard deviations of the belief that are added; 0 is greedy.",
        ),
        *linear_options.OPTIONS,
    ),
    contextual=True,
    pooled=True,
)  # fmt: skip


def policy(
    *, arms: int, segments: int, features: int = 0, backend: str = "numpy", **options: OptionValue
) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)
    space = backends.named(backend)
    regressor = linear_options.regressor(
        chosen, arms=arms, segments=segments, features=features, space=space
    )

    def rule(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        return explore.ucb(prediction, mask, alpha=chosen["alpha"])

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space
    )
