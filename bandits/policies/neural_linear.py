"""Thompson sampling over features that a network learns: for rewards with curves and corners.

The mean reward of each arm is linear in the context and in what a network makes of it
(:mod:`bandits.regressors.neural_linear`); the last layer's belief is an exact Student t. The
simplex is P(arm is best), by quadrature. Between two retrainings only the last layer learns.

Source: Thompson, Biometrika 25 (1933); Riquelme, Tucker and Snoek, ICLR 2018 (NeuralLinear).
"""

from bandits import backend as backends
from bandits import explore
from bandits.policies import contextual
from bandits.policies.linear_options import OPTIONS
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors import neural_linear
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Belief, Policy

SPEC = PolicySpec(
    name="neural_linear",
    title="Thompson sampling (neural features)",
    summary="Learns curved effects of the context, and explores by the last layer's belief.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option(
            "explore", "number", 1.0, 0.0, 100.0, True,
            "How wide beliefs are taken to be: 1 as they are, less explores less.",
        ),
        Option(
            "units", "number", float(neural_linear.UNITS), 1.0, 1024.0, False,
            "Units of each of the network's two layers, a whole number.",
        ),
        *OPTIONS[:3],  # of the model of one arm
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
    wide = chosen.pop("explore")
    chosen["units"] = round(chosen["units"])
    regressor = neural_linear.regressor(
        arms=arms, segments=segments, features=features, space=space, **chosen
    )

    def rule(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        wider = prediction._replace(scale=prediction.scale * wide)
        return explore.thompson(wider, mask, backend=space)

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space
    )
