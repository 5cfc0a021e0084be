"""Thompson sampling for conversions: each arm is served as often as it is likely to be the best.

Conversion rate of arm k in a segment: Beta(alpha + c_k, beta + n_k - c_k) after c_k conversions in
n_k decisions. The simplex is P(arm k has the greatest rate), by quadrature
(:mod:`bandits.posteriors.best`), not by a draw: the propensity is exact.

Source: Thompson, Biometrika 25 (1933); Chapelle and Li, NIPS 24 (2011).

>>> from bandits import policies
>>> thompson = policies.make("thompson_beta", arms=2, segments=1)
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> thompson.probabilities(thompson.init(), contexts, np.ones((1, 2), bool)).round(9)
array([[0.5, 0.5]])
"""

import numpy as np

from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.posteriors import best
from bandits.posteriors.beta import posterior
from bandits.types import ArmSums, Array, Contexts, Policy

__all__ = ["SPEC", "Contexts", "np", "policy"]

SPEC = PolicySpec(
    name="thompson_beta",
    title="Thompson sampling (conversions)",
    summary="Sends more traffic to the arms that are more likely to convert best.",
    objectives=("conversion",),
    randomised=True,
    options=(
        Option("alpha", "number", 1.0, 0.5, 1e6, False, "Conversions assumed beforehand."),
        Option("beta", "number", 1.0, 0.5, 1e6, False, "Non-conversions assumed beforehand."),
    ),
)


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)

    def weights(space: Backend) -> arm_level.Weights:
        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            known = posterior(space.xp, sums, alpha=chosen["alpha"], beta=chosen["beta"])
            return best.beta(known.a, known.b, mask, backend=space)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
