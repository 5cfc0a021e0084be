"""The yardsticks: what a few lines of numpy do. No peers, no part of Barter; beat them too."""

from typing import Any

import numpy as np

from tests.bench.policies.protocol import Floats, Ints, System, serve


class Uniform:
    """Every arm equally often."""

    batch = 1000

    def __init__(self, arms: int, seed: int) -> None:
        self.arms, self.rng = arms, np.random.default_rng(seed)

    def choose(self, contexts: Floats) -> Ints:
        return self.rng.integers(0, self.arms, len(contexts))

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        """Nothing."""


class Means:
    """Arms without contexts: Thompson sampling with Beta(1, 1), or the greatest mean so far."""

    batch = 1

    def __init__(self, arms: int, seed: int, *, rule: str) -> None:
        self.trials, self.total = np.zeros(arms), np.zeros(arms)
        self.rule, self.rng = rule, np.random.default_rng(seed)

    def choose(self, contexts: Floats) -> int:
        if self.rule == "thompson":
            return int(self.rng.beta(1 + self.total, 1 + self.trials - self.total).argmax())
        means = np.where(self.trials > 0, self.total / np.maximum(self.trials, 1), np.inf)
        return int(self.rng.choice(np.flatnonzero(means == means.max())))

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        self.trials[arms[0]] += 1
        self.total[arms[0]] += reward[0]


class Ridge:
    """One ridge regression per arm, by rank-one updates of its inverse.

    ``rule`` is "greedy", "ucb" (mean + scale · standard deviation) or "thompson" (a normal draw
    with ``scale`` times the standard deviation).
    """

    batch = 1

    def __init__(
        self, arms: int, features: int, seed: int, *, rule: str, scale: float, intercept: bool
    ) -> None:
        width = features + intercept
        self.inverse = np.tile(np.eye(width), (arms, 1, 1))
        self.moment, self.weights = np.zeros((arms, width)), np.zeros((arms, width))
        self.rule, self.scale, self.intercept = rule, scale, intercept
        self.rng = np.random.default_rng(seed)

    def row(self, contexts: Floats) -> Floats:
        return np.append(contexts[0], 1.0) if self.intercept else contexts[0]

    def choose(self, contexts: Floats) -> int:
        x = self.row(contexts)
        value = self.weights @ x
        if self.rule == "greedy":  # ties at random, or an arm that never pays is kept for ever
            best = np.flatnonzero(value == value.max())
            return int(best[0] if len(best) == 1 else self.rng.choice(best))
        spread = np.sqrt(np.maximum((self.inverse @ x) @ x, 0.0))
        noise = self.rng.standard_normal(len(value)) if self.rule == "thompson" else 1.0
        return int((value + self.scale * noise * spread).argmax())

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        x, arm = self.row(contexts), int(arms[0])
        inverse = self.inverse[arm]
        projected = inverse @ x
        inverse -= np.outer(projected, projected) / (1.0 + x @ projected)
        self.moment[arm] += reward[0] * x
        self.weights[arm] = inverse @ self.moment[arm]


def make(arms: int, features: int, seed: int, settings: dict[str, Any]) -> System:
    """The yardstick that the settings name."""
    rule = settings["rule"]
    if rule == "uniform":
        return Uniform(arms, seed)
    if features == 0:
        return Means(arms, seed, rule=rule)
    return Ridge(
        arms,
        features,
        seed,
        rule=rule,
        scale=settings.get("scale", 1.0),
        intercept=settings.get("intercept", True),
    )


if __name__ == "__main__":
    serve(make)
