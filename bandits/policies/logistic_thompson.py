"""Thompson sampling over logistic arms: for conversions, each served as often as likely best.

The log odds of a conversion are linear in the context (:mod:`bandits.regressors.logistic`), and
Gaussian under the belief, independent between arms. Log odds order the arms as the rates do, so
the simplex, P(arm is best) by quadrature, is that of the rates. Every arm's evidence is weighed by
its own binomial variance, where ``linear_thompson`` takes one spread for all.

Source: Chapelle and Li, NIPS 2011; Thompson, Biometrika 25 (1933).

>>> import numpy as np
>>> from bandits import policies
>>> from bandits.types import Contexts
>>> logistic = policies.make("logistic_thompson", arms=2, segments=1, features=1)
>>> belief = logistic.believe(logistic.init())
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 1), np.int64))
>>> logistic.probabilities(belief, contexts, np.ones((1, 2), bool)).round(9)
array([[0.5, 0.5]])
"""

from bandits import backend as backends
from bandits import explore
from bandits.policies import contextual
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors import logistic
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Belief, Policy

SPEC = PolicySpec(
    name="logistic_thompson",
    title="Thompson sampling (logistic)",
    summary=(
        "Learns how each arm's conversion rate changes with the context, and "
        "serves it as often as it is likely to be best."
    ),
    objectives=("conversion",),
    randomised=True,
    options=(
        Option(
            "explore", "number", 0.5, 0.0, 100.0, True,
            "How wide beliefs are taken to be: 1 is Thompson's rule, less explores less.",
        ),
        Option(
            "precision", "number", None, 0.0, 1e9, True,
            "How strongly coefficients are drawn to 0; the evidence chooses when left out.",
        ),
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
    regressor = logistic.regressor(
        arms=arms, segments=segments, features=features, space=space, precision=chosen["precision"]
    )

    def rule(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        wide = prediction._replace(scale=prediction.scale * chosen["explore"])
        return explore.thompson(wide, mask, backend=space)

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space,
        alone=explore.thompson_alone(chosen["explore"]),
    )  # fmt: skip
