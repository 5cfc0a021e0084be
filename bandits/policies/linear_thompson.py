"""Thompson sampling over linear arms: each is served as often as it is likely to earn most.

The reward of arm a is linear in the context (:mod:`bandits.regressors.linear`), so its mean is a
Student t, independent of the other arms': the simplex is P(arm is best) by quadrature, exact. Arms
may also share their coefficients (option ``sharing``, :mod:`bandits.regressors.linear_shared`).

Source: Agrawal and Goyal, ICML 2013; Thompson, Biometrika 25 (1933).

>>> import numpy as np
>>> from bandits import policies
>>> from bandits.types import Contexts
>>> linear = policies.make("linear_thompson", arms=2, segments=1, features=1)
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
    name="linear_thompson",
    title="Thompson sampling (linear)",
    summary=(
        "Learns how each arm's reward changes with the context, and "
        "serves it as often as it is likely to be best."
    ),
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option(
            "explore", "number", 0.5, 0.0, 100.0, True,
            "How wide beliefs are taken to be: 1 is Thompson's rule, less explores less.",
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
        return explore.thompson(explore.widened(prediction, chosen["explore"]), mask, backend=space)

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space,
        alone=explore.thompson_alone(chosen["explore"]),
    )  # fmt: skip
