"""Beta posterior of a conversion rate, and the profit per conversion that goes with it.

θ ~ Beta(alpha, beta) beforehand; after c conversions in n decisions θ ~ Beta(alpha + c,
beta + n - c). Functions take ledger sums of any leading shape and the array namespace ``xp``.
"""

from typing import NamedTuple

from bandits.types import ArmSums, Array


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
    """Reward per conversion (..., A): ``(weight prior + Σ reward) / (weight + conversions)``."""
    conversions = xp.maximum(sums.conversions, 0)
    return (weight * prior + sums.reward) / (weight + conversions)
