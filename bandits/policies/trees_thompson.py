"""Thompson sampling over gradient-boosted trees: for rewards that hang on a context in steps.

The mean reward of each arm is predicted by trees (:mod:`bandits.regressors.trees`), and is taken
to be Gaussian with the scale that the leaves' counts give. The simplex is P(arm is best), by
quadrature. Between two retrainings only counts are learnt.

Source: Thompson, Biometrika 25 (1933); Elmachtoub et al., NIPS workshop 2017 (bandits over trees).
"""

from bandits import backend as backends
from bandits import explore
from bandits.policies import contextual
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors import trees
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Belief, Policy

SPEC = PolicySpec(
    name="trees_thompson",
    title="Thompson sampling (boosted trees)",
    summary="Finds steps and combinations in the context, and explores where it has seen little.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option(
            "explore", "number", 1.0, 0.0, 100.0, True,
            "How wide beliefs are taken to be: 1 as the leaves say, less explores less.",
        ),
        Option(
            "spread", "number", None, 0.0, 1e9, True,
            "Standard deviation of a reward, in its units; the residuals' own when left out.",
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
    regressor = trees.regressor(
        arms=arms, segments=segments, features=features, space=space, spread=chosen["spread"]
    )

    def rule(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        wide = prediction._replace(scale=prediction.scale * chosen["explore"])
        return explore.thompson(wide, mask, backend=space)

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space
    )
