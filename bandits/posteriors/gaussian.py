"""Normal-inverse-gamma posterior of a mean reward whose variance is unknown too.

σ² ~ InvGamma(shape, shape sd²) and μ | σ² ~ N(mean, σ²/weight) beforehand. After n rewards with
sum s and sum of squares q, with κ = weight + n and a = shape + n/2:
``μ_n = (weight mean + s)/κ``, ``b = shape sd² + (q - s²/n)/2 + weight n (s/n - mean)²/(2κ)``;
μ is then a Student t with 2a degrees of freedom about μ_n with scale √(b/(aκ)).

Source: Gelman et al., Bayesian Data Analysis, 3rd edition (2013), section 3.3.
"""

from typing import NamedTuple

from bandits import ledger
from bandits.types import ArmSums, Array


class StudentPosterior(NamedTuple):
    """The marginal of each arm's mean reward.

    Attributes:
        mean: (..., A) float64, integer units of reward.
        scale: (..., A) float64 > 0, same units.
        freedom: (..., A) float64 >= 2.
    """

    mean: Array
    scale: Array
    freedom: Array

    @property
    def sd(self) -> Array:
        """Standard deviation (..., A); infinite at 2 degrees of freedom."""
        spare = self.freedom - 2.0
        positive = spare > 0
        safe = positive * spare + ~positive
        return self.scale * (self.freedom / safe) ** 0.5 + ~positive * float("1e300")


def posterior(
    xp: Array, sums: ArmSums, *, mean: Array | float, sd: Array | float, weight: float, shape: float
) -> StudentPosterior:
    """The posterior of each arm's mean reward, from the ledger's sums."""
    n = xp.maximum(sums.trials, 0)
    average = sums.reward / xp.where(n > 0, n, 1)
    spread = xp.maximum(ledger.square(sums) - average * sums.reward, 0.0)
    kappa, a = weight + n, shape + 0.5 * n
    pull = 0.5 * weight * n * (average - mean) ** 2 / kappa
    b = shape * sd * sd + 0.5 * spread + pull
    return StudentPosterior(
        (weight * mean + n * average) / kappa, xp.sqrt(b / (a * kappa)), 2.0 * a
    )
