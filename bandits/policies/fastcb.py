"""FastCB: inverse gap weighting that hardly explores where the best arm hardly ever fails.

As :mod:`bandits.policies.squarecb`, with losses ``l = high - reward`` in units of the greatest
reward: an arm's share is ``l_best / (K l_best + γ (l - l_best))``. The greatest reward is the
option ``high``; without it, it is taken to be twice the root mean square of the rewards so far,
and 1 for conversions.

Source: Foster and Krishnamurthy, NeurIPS 2021 (METHODS section 2).
"""

from bandits import explore
from bandits.policies import gap_weighting
from bandits.policies.gap_weighting import Pace
from bandits.policies.spec import Option, OptionValue, PolicySpec
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Policy

SPEC = PolicySpec(
    name="fastcb",
    title="FastCB",
    summary="As SquareCB, but explores less where the best arm leaves little to be gained.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        *gap_weighting.OPTIONS,
        Option(
            "high", "number", None, 0.0, 1e9, True,
            "The greatest reward there can be, in its units; estimated when left out.",
        ),
    ),
    contextual=True,
    pooled=True,
)  # fmt: skip


def policy(
    *, arms: int, segments: int, features: int = 0, backend: str = "numpy", **options: OptionValue
) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    high = options.get("high")

    def rule(prediction: Prediction, mask: Array, pace: Pace) -> Array:
        # In units of the root mean square, like the means; conversions have the maximum 1.
        greatest = pace.greatest if high is None else float(high) / pace.unit  # type: ignore[arg-type]
        share = Prediction(prediction.mean / greatest)
        return explore.fastcb(share, mask, gamma=pace.gamma * greatest, high=1.0)

    return gap_weighting.policy(
        SPEC, rule, arms=arms, segments=segments, features=features, backend=backend, **options
    )
