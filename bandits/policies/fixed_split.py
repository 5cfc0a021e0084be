"""Fixed split (A/B/n test): every arm keeps the share it was given.

Shares of masked arms go to the eligible arms in proportion; where no eligible arm has a share,
they share equally. Learns nothing, so its log is an ordinary randomised experiment.

Source: Fisher, The Design of Experiments (1935).

>>> from bandits import policies
>>> split = policies.make("fixed_split", arms=3, segments=1, shares=[0.5, 0.3, 0.2])
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> split.probabilities(split.init(), contexts, np.array([[True, True, False]]))
array([[0.625, 0.375, 0.   ]])
"""

import numpy as np

from bandits import simplex
from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.types import ArmSums, Array, Contexts, Policy

__all__ = ["SPEC", "Contexts", "policy"]

SPEC = PolicySpec(
    name="fixed_split",
    title="Fixed split (A/B test)",
    summary="Every arm keeps the same share of traffic for the whole campaign.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option(
            "shares", "per_arm", None, 0.0, 1e9, False,
            "Weight of each arm, in any unit; equal shares when left out.",
        ),
    ),
)  # fmt: skip


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)
    shares = np.ones(arms) if chosen["shares"] is None else chosen["shares"]
    if not shares.sum() > 0:
        raise ValueError("shares: at least one must be greater than 0")

    def weights(space: Backend) -> arm_level.Weights:
        split = space.xp.asarray(shares / shares.sum())

        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            return simplex.mask(split + 0.0 * sums.trials, mask)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
