"""NeuralTS and NeuralUCB, to compare with: a network's uncertainty from its gradient.

A policy in a file, as ``--policy`` takes it, and no part of the library: its sums are floats. The
mean reward of an arm is what the network says, f; with g its gradient in all weights, divided by
the root of the units H, the scale is ``ν √(λ Σ g²/Z)`` where ``Z = λ + Σ g²`` over the rows served,
entry by entry (the authors' diagonal). One network has an output per arm, where the authors stack
the context per arm. Z is counted afresh at every retraining.

Sources: Zhou, Li and Gu, ICML 2020 (NeuralUCB); Zhang et al., ICLR 2021 (NeuralTS).

    python -m tests.bench.policies --policy tests/bench/policies/neural_gradient.py --tasks adult
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import explore, features
from bandits.backend import numpy_backend
from bandits.policies import contextual
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors import linear, network, neural_linear
from bandits.regressors.neural_linear import WEIGHT_BITS, Job
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import Batch, Belief, Contexts, Policy

Floats = NDArray[np.float64]
UNITS = 32

SPEC = PolicySpec(
    name="neural_gradient",
    title="NeuralTS and NeuralUCB",
    summary="Explores by the gradient of a network.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option("nu", "number", 0.1, 0.0, 100.0, True, "How wide beliefs are."),
        Option("ridge", "number", 1.0, 0.0, 100.0, True, "λ, what Z begins at."),
        Option(
            "rule", "choice", 0.0, 0.0, 1.0, False, "NeuralTS or NeuralUCB.", ("thompson", "ucb")
        ),
    ),
    contextual=True,
    pooled=True,
)


class GradientState(NamedTuple):
    """The network, and Z less λ.

    Attributes:
        weights: (W,) int32 in 2**-16.
        head: (A, P) int32 in 2**-16.
        seen_layers: (W,) float64, Σ g² of the layers.
        seen_head: (A, P) float64, Σ g² of the last one.
        centre: (1,) float64, mean of the rewards of the fit.
        unit: (1,) float64, their standard deviation.
    """

    weights: NDArray[np.int32]
    head: NDArray[np.int32]
    seen_layers: Floats
    seen_head: Floats
    centre: Floats
    unit: Floats


def policy(
    *, arms: int, segments: int, features: int = 0, backend: str = "numpy", **options: OptionValue
) -> Policy:
    """The policy; it runs in numpy whatever the backend."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)
    rule, nu = str(chosen["rule"]), float(chosen["nu"])
    learner = regressor(
        arms=arms, segments=segments, features=features, ridge=float(chosen["ridge"])
    )

    def shares(prediction: Prediction, mask: Any, belief: Belief) -> Any:
        wide = prediction._replace(scale=nu * prediction.scale)
        if rule == "ucb":
            return explore.ucb(wide, mask, alpha=1.0)
        return explore.thompson(wide, mask, backend=numpy_backend())

    return contextual.policy(
        SPEC.name, learner, shares, arms=arms, segments=segments, features=features,
        space=numpy_backend(),
    )  # fmt: skip


def regressor(*, arms: int, segments: int, features: int, ridge: float) -> Regressor:
    """The regressor; its scale is that of ν = 1."""
    inputs = segments + features - 1
    first = neural_linear.first_weights(inputs=inputs, units=UNITS)
    width = 1 + inputs + UNITS

    def init() -> GradientState:
        head = np.random.default_rng(0).normal(scale=1 / np.sqrt(width), size=width)
        whole = np.tile(neural_linear.packed([head]), (arms, 1))  # arms begin alike
        nothing = np.zeros(len(first)), np.zeros((arms, width))
        return GradientState(first, whole, *nothing, np.zeros(1), np.ones(1))

    def update(state: GradientState, batch: Batch) -> GradientState:
        passed = _passed(state, _design(batch.contexts, segments))
        head, layers = state.seen_head.copy(), state.seen_layers.copy()
        for arm in range(arms):
            signs = np.where(np.asarray(batch.arm) == arm, np.asarray(batch.sign), 0)
            squares = passed.squares(arm)
            layers += squares.total(signs)
            head[arm] += signs @ passed.columns**2 / UNITS
        return state._replace(seen_layers=layers, seen_head=head)

    def predict(state: GradientState, contexts: Contexts) -> Prediction:
        passed = _passed(state, _design(contexts, segments))
        variance = np.stack(
            [
                passed.squares(arm).weighed(1.0 / (ridge + state.seen_layers))
                + passed.columns**2 @ (1.0 / (ridge + state.seen_head[arm])) / UNITS
                for arm in range(arms)
            ],
            axis=1,
        )
        mean = state.centre + state.unit * (passed.columns @ passed.head.T)
        scale = state.unit * np.sqrt(ridge * variance)
        return Prediction(mean, scale, np.full(mean.shape, np.inf))

    def retrain(state: GradientState, batch: Batch, seed: int) -> GradientState:
        kept = np.asarray(batch.sign) > 0
        x, arm = _design(batch.contexts, segments)[kept], np.asarray(batch.arm)[kept]
        reward = np.asarray(batch.reward)[kept]
        centre, unit = np.array([reward.mean()]), np.array([reward.std() or 1.0])
        target = ((reward - centre) / unit).astype(np.float32)
        head = (state.head / float(1 << WEIGHT_BITS)).astype(np.float32)
        job = Job(x[:, 1:].astype(np.float32), arm, target, state.weights, head)
        ((weights, last),) = network.fit_many([job], seed, units=UNITS)
        return update(init()._replace(weights=weights, head=last, centre=centre, unit=unit), batch)

    return Regressor("neural_gradient", init, update, lambda state: state, predict, None, retrain)


def _design(contexts: Contexts, segments: int) -> Floats:
    whole = linear.design(contexts, segments=segments, space=numpy_backend())
    found: Floats = features.values(whole)
    return found


class Squares(NamedTuple):
    """g² of the layers by their factors: a kernel's is ``before`` (B, I) times ``after`` (B, H)."""

    pairs: tuple[tuple[Floats, Floats], ...]

    def total(self, signs: NDArray[np.int64]) -> Floats:
        """Σ over rows (B,) of the squares, flat as the weights are (W,)."""
        parts = []
        for before, after in self.pairs:
            signed = after * signs[:, None]
            parts += [(before.T @ signed).reshape(-1), signed.sum(axis=0)]
        found: Floats = np.concatenate(parts) / UNITS
        return found

    def weighed(self, inverse: Floats) -> Floats:
        """Σ over weights (W,) of the squares times ``inverse``: (B,)."""
        inputs = self.pairs[0][0].shape[1]
        parts = neural_linear.unpacked(inverse, inputs=inputs, units=UNITS)
        total = np.zeros(len(self.pairs[0][0]))
        for (before, after), kernel, bias in zip(self.pairs, parts[::2], parts[1::2], strict=True):
            total += (after * (before @ kernel + bias)).sum(axis=1)
        return total / UNITS


class Passed(NamedTuple):
    """What the rows x (B, I) made of the network: units (B, H) of both layers, columns (B, P)."""

    x: Floats
    one: Floats
    two: Floats
    columns: Floats
    kernel: Floats
    head: Floats

    def squares(self, arm: int) -> Squares:
        """The squared gradient of an arm's output in the layers."""
        after = self.head[arm, -UNITS:] * (self.two > 0)
        before = (after @ self.kernel.T) * (self.one > 0)
        return Squares(((self.x**2, before**2), (self.one**2, after**2)))


def _passed(state: GradientState, design: Floats) -> Passed:
    real = state.weights / float(1 << WEIGHT_BITS)
    x = design[:, 1:]
    first, one, second, two = neural_linear.unpacked(real, inputs=x.shape[1], units=UNITS)
    z = np.maximum(x @ first + one, 0.0)
    last = np.maximum(z @ second + two, 0.0)
    columns = np.concatenate([design, last], axis=1)
    return Passed(x, z, last, columns, second, state.head / float(1 << WEIGHT_BITS))
