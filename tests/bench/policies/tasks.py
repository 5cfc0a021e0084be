"""The tasks: what every system meets, as plain numpy arrays that only the seed decides.

A problem is a table of contexts and of the reward that every arm would have earned in every row,
so that all systems of one seed meet the same contexts, noise and order, and their differences can
be paired. A system sees the reward of the arm it chose, and no other.

Sources: Garivier and Cappé, COLT 2011 (Bernoulli, scenario 2); Bietti, Agarwal and Langford, JMLR
22 (2021) (classification as a bandit); Riquelme, Tucker and Snoek, ICLR 2018, section 5.4 (wheel).

>>> problem = TASKS["linear"].problem(0, rows=3)
>>> problem.contexts.shape, problem.reward.shape
((3, 20), (3, 10))
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.bench.policies import data

Floats = NDArray[np.float64]

#: Conversion rates of the Bernoulli arms.
RATES = np.array([0.10, 0.05, 0.05, 0.05, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01])


class Problem(NamedTuple):
    """One seed of a task.

    Attributes:
        contexts: (N, D) float64; D is 0 where there is nothing to see.
        reward: (N, A) float64, what each arm would earn.
        mean: (N, A) float64, its expectation; ``reward`` itself where nothing is random.
    """

    contexts: Floats
    reward: Floats
    mean: Floats


class Task(NamedTuple):
    """A task.

    Attributes:
        name: what it is called on the command line.
        title: one line for a heading.
        family: settings are chosen per family.
        measure: "reward" (mean per row, greater is better), "regret" (in all, less is better) or
            "share" (regret in percent of the uniform policy's expected regret).
        rows: N.
        seeds: how many are run unless told otherwise.
        unit: what a reward is multiplied by to become an integer, for Barter.
        make: ``(seed, rows) -> Problem``.
    """

    name: str
    title: str
    family: str
    measure: Literal["reward", "regret", "share"]
    rows: int
    seeds: int
    unit: int
    make: Callable[[int, int], Problem]

    def problem(self, seed: int, *, rows: int | None = None) -> Problem:
        """The problem of a seed, with ``rows`` rows at most."""
        return self.make(seed, rows or self.rows)


def bernoulli(seed: int, rows: int) -> Problem:
    """Ten arms without contexts; one uniform number per row decides for whichever arm is chosen."""
    u = np.random.default_rng(10_000 + seed).random(rows)
    mean = np.tile(RATES, (rows, 1))
    return Problem(np.zeros((rows, 0)), (u[:, None] < mean).astype(np.float64), mean)


def linear(seed: int, rows: int) -> Problem:
    """Ten unit vectors in 20 dimensions, Gaussian contexts, Gaussian noise of 0.5."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(10, 20))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    contexts = rng.normal(size=(rows, 20))
    mean = contexts @ weights.T
    return Problem(contexts, mean + 0.5 * rng.normal(size=mean.shape), mean)


def classification(name: str) -> Callable[[int, int], Problem]:
    """A table in an order of the seed's own; the arm that names the class right earns 1."""

    def make(seed: int, rows: int) -> Problem:
        features, label = data.table(name)
        order = np.random.default_rng(1000 + seed).permutation(len(label))[:rows]
        reward = np.eye(int(label.max()) + 1)[label[order]]
        return Problem(features[order], reward, reward)

    return make


def wheel(delta: float) -> Callable[[int, int], Problem]:
    """Points of the unit disc, five arms, Gaussian noise of 0.01.

    Arm 4 earns 1.2 and the others 1, save that beyond the radius ``delta`` the arm of the point's
    quadrant earns 50.
    """

    def make(seed: int, rows: int) -> Problem:
        rng = np.random.default_rng((seed, round(delta * 1000)))
        radius, angle = np.sqrt(rng.uniform(size=rows)), rng.uniform(0, 2 * np.pi, rows)
        contexts = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        mean = np.tile([1.0, 1.0, 1.0, 1.0, 1.2], (rows, 1))
        right, up = contexts[:, 0] > 0, contexts[:, 1] > 0
        quadrant = np.where(right, np.where(up, 0, 1), np.where(up, 2, 3))
        far = np.flatnonzero(radius >= delta)
        mean[far, quadrant[far]] = 50.0
        return Problem(contexts, mean + 0.01 * rng.normal(size=mean.shape), mean)

    return make


DELTAS = (0.5, 0.7, 0.9, 0.95, 0.99)
#: Rows of the classification tables; shuttle and adult are cut off there.
ROWS = {"digits": 1797, "mushroom": 5644, "shuttle": 10_000, "adult": 10_000}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "bernoulli",
            "Ten Bernoulli arms, 10,000 rows",
            "bernoulli",
            "regret",
            10_000,
            20,
            1,
            bernoulli,
        ),
        Task(
            "linear",
            "Linear rewards, 20 features, ten arms, 10,000 rows",
            "linear",
            "regret",
            10_000,
            10,
            1000,
            linear,
        ),
        *(
            Task(
                name,
                f"Classification: {name}, {rows:,} rows in one pass",
                "classification",
                "reward",
                rows,
                10,
                1,
                classification(name),
            )
            for name, rows in ROWS.items()
        ),
        *(
            Task(
                f"wheel-{round(delta * 100)}",
                f"Wheel, δ = {delta}, 80,000 rows",
                "wheel",
                "share",
                80_000,
                10,
                1000,
                wheel(delta),
            )
            for delta in DELTAS
        ),
    )
}


def curve(problem: Problem, arms: NDArray[np.int64], points: int = 20) -> tuple[list[int], Floats]:
    """Rows so far, and the cumulative expected regret there, at ``points`` even steps."""
    best = problem.mean.max(axis=1)
    lost = np.cumsum(best - problem.mean[np.arange(len(arms)), arms])
    at = np.unique(np.linspace(len(arms) / points, len(arms), points).astype(int))
    return at.tolist(), lost[at - 1]


def score(task: Task, problem: Problem, arms: NDArray[np.int64]) -> float:
    """The task's measure of the arms (N,) that were chosen."""
    chosen = problem.mean[np.arange(len(arms)), arms]
    if task.measure == "reward":
        return float(problem.reward[np.arange(len(arms)), arms].mean())
    best = problem.mean.max(axis=1)
    regret = float((best - chosen).sum())
    if task.measure == "regret":
        return regret
    return 100.0 * regret / float((best - problem.mean.mean(axis=1)).sum())
