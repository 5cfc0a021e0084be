"""Beta posterior of a conversion rate, and the profit per conversion that goes with it.

θ ~ Beta(alpha, beta) beforehand; after c conversions in n decisions θ ~ Beta(alpha + c,
beta + n - c). Functions take ledger sums of any leading shape and the array namespace ``xp``.
"""

from typing import NamedTuple

from bandits.types import ArmSums, Array

#: Conversions that the assumed basket itself counts for, and how far off it may be.
SCALE_WEIGHT = 10.0
SCALE_LIMIT = 100.0


class BetaPosterior(NamedTuple):
    """Parameters per row and arm.

    Attributes:
        a: (..., A) float64, prior plus conversions.
        b: (..., A) float64, prior plus non-conversions.
    """

    a: Array
    b: Array

    @property
    def mean(self) -> Array:
        """E[θ], (..., A)."""
        return self.a / (self.a + self.b)

    @property
    def sd(self) -> Array:
        """Standard deviation of θ, (..., A)."""
        n = self.a + self.b
        return (self.a * self.b / (n * n * (n + 1.0))) ** 0.5


def posterior(xp: Array, sums: ArmSums, *, alpha: float, beta: float) -> BetaPosterior:
    """The posterior of each arm's conversion rate.

    Corrections that arrive before what they correct can leave counts negative for a moment; the
    counts are then taken as 0, so that nothing is ever not a number.
    """
    trials = xp.maximum(sums.trials, 0)
    conversions = xp.clip(sums.conversions, 0, trials)
    return BetaPosterior(alpha + conversions, beta + (trials - conversions))


def value_per_conversion(xp: Array, sums: ArmSums, *, prior: Array, weight: float) -> Array:
    """Reward per conversion (..., A): ``(weight s prior + Σ reward) / (weight + conversions)``.

    What is known beforehand is how the arms compare (margin less each one's discount); the typical
    basket behind it is a guess. So the segment's own sales rescale the prior by ``s``, the rewards
    of all its arms over what the prior expected of those conversions: a wrong guess would otherwise
    flatter the arms that have sold least.
    """
    conversions = xp.maximum(sums.conversions, 0)
    earns = prior > 0
    expected = xp.where(earns, prior * conversions, 0.0).sum(axis=-1, keepdims=True)
    observed = xp.where(earns, sums.reward, 0).sum(axis=-1, keepdims=True)
    assumed = SCALE_WEIGHT * xp.where(earns, prior, 0.0).mean(axis=-1, keepdims=True)
    known = assumed > 0
    scale = xp.where(known, (assumed + observed) / xp.where(known, assumed + expected, 1.0), 1.0)
    scale = xp.clip(scale, 1.0 / SCALE_LIMIT, SCALE_LIMIT)
    return (weight * scale * prior + sums.reward) / (weight + conversions)
