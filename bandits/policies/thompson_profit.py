"""Thompson sampling for profit: conversion rate times profit per conversion.

Expected profit of arm k per decision is ``m_k θ_k`` with θ_k ~ Beta(alpha + c, beta + n - c) and
``m_k = (value_weight · s · value_k + Σ reward) / (value_weight + c_k)``, the profit per conversion
shrunk towards what the campaign's own figures say, rescaled by ``s`` to the sales of the segment
(:func:`bandits.posteriors.beta.value_per_conversion`). The simplex is P(m_k θ_k is greatest) by
quadrature. An arm with ``m_k <= 0`` loses money on each conversion and gets probability 0, unless
every eligible arm does: then the arm with the least loss ``m_k E[θ_k]`` is served. A cost that all
arms share does not change which is best and is left out.

Source: Thompson (1933) on a scaled reward; METHODS section 1 (p_k with m = profit per conversion).

>>> from bandits import policies
>>> thompson = policies.make("thompson_profit", arms=2, segments=1, value=[[900.0, 300.0]])
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> thompson.probabilities(thompson.init(), contexts, np.ones((1, 2), bool)).round(6)
array([[0.833333, 0.166667]])
"""

import numpy as np

from bandits.backend import Backend
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.posteriors import best
from bandits.posteriors.beta import posterior, value_per_conversion
from bandits.types import ArmSums, Array, Contexts, Policy

__all__ = ["SPEC", "Contexts", "policy"]

SPEC = PolicySpec(
    name="thompson_profit",
    title="Thompson sampling (profit)",
    summary="Sends more traffic to the arms that are more likely to earn most profit per visitor.",
    objectives=("profit", "revenue"),
    randomised=True,
    options=(
        Option("alpha", "number", 1.0, 0.5, 1e6, False, "Conversions assumed beforehand."),
        Option("beta", "number", 1.0, 1.0, 1e6, False, "Non-conversions assumed beforehand."),
        Option(
            "value", "per_segment_arm", None, -1e9, 1e9, False,
            "Profit per conversion assumed beforehand, in minor units; 1 when left out.",
        ),
        Option(
            "value_weight", "number", 100.0, 0.0, 1e6, True,
            "Conversions that the assumed profit counts for.",
        ),
    ),
)  # fmt: skip


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)
    value = np.ones((segments, arms)) if chosen["value"] is None else chosen["value"]

    def weights(space: Backend) -> arm_level.Weights:
        xp = space.xp
        prior = xp.asarray(value)

        def rows(sums: ArmSums, segment: Array, mask: Array) -> Array:
            known = posterior(xp, sums, alpha=chosen["alpha"], beta=chosen["beta"])
            paid = value_per_conversion(
                xp, sums, prior=prior[segment], weight=chosen["value_weight"]
            )
            earns = mask & (paid > 0)
            some = earns.any(axis=1, keepdims=True)
            p = best.beta(
                known.a,
                known.b,
                xp.where(some, earns, mask),
                value=xp.where(some & (paid > 0), paid, 1.0),
                backend=space,
            )
            least_loss = arm_level.shared_among_best(xp, paid * known.mean, mask)
            return xp.where(some, p, least_loss)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
