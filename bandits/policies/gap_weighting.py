"""What SquareCB and FastCB share: the regressor by name, the unit of a gap, and the pace of γ."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bandits import backend as backends
from bandits.backend import Backend, namespace
from bandits.policies import contextual
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors import linear, trees
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import Array, Belief, Contexts, Policy, State

#: The regressors that can be named, in the order of the option's choices.
REGRESSORS: dict[str, Callable[..., Regressor]] = {
    "linear": partial(linear.regressor, uncertain=False),
    "trees": trees.regressor,
}

OPTIONS = (
    Option(
        "regressor", "choice", 0.0, 0.0, 1.0, False,
        "What predicts the reward: linear, or boosted trees, which are refitted now and then.",
        tuple(REGRESSORS),
    ),
    Option(
        "gamma", "number", 30.0, 0.0, 1e6, True,
        "How fast shares of worse arms fall; greater explores less.",
    ),
)  # fmt: skip


class Pace(NamedTuple):
    """How gaps are weighed at a state.

    Attributes:
        gamma: () float64, γ for gaps in ``unit``.
        unit: () float64, root mean square of the rewards; 1 before there are any.
        greatest: () float64, the greatest reward in that unit, as far as can be told.
    """

    gamma: Array
    unit: Array
    greatest: Array


#: ``(prediction in units of the reward's size, mask, pace) -> simplex``.
PacedRule = Callable[[Prediction, Array, Pace], Array]


def policy(
    spec: PolicySpec, rule: PacedRule, *, arms: int, segments: int, features: int, backend: str,
    **options: OptionValue,
) -> Policy:  # fmt: skip
    """The policy that weighs gaps by ``rule``."""
    chosen = checked(spec, options, segments=segments, arms=arms)
    space = backends.named(backend)
    inner = REGRESSORS[chosen["regressor"]](
        arms=arms, segments=segments, features=features, space=space
    )
    paced = inner._replace(
        believe=lambda state: (inner.believe(state), pace(state, chosen["gamma"], space)),
        predict=lambda belief, contexts: _scaled(inner, belief, contexts),
    )

    def simplices(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        return rule(prediction, mask, belief[1])

    return contextual.policy(
        spec.name, paced, simplices, arms=arms, segments=segments, features=features, space=space
    )


def pace(state: State, gamma: float, space: Backend) -> Pace:
    """The pace that a state's counts set: fields ``trials``, ``square_high``, ``square_low``."""
    xp = space.xp
    trials = xp.asarray(state.trials).sum()
    squares = xp.asarray(state.square_high).sum() * 2.0**32 + xp.asarray(state.square_low).sum()
    mean = xp.maximum(squares, 0.0) / xp.maximum(trials, 1)
    size = xp.sqrt(mean)
    # 0/1 rewards have a mean square below 1 and the maximum 1; money has neither.
    unit = xp.where(size > 0, size, 1.0)
    greatest = xp.where(size <= 1.0, 1.0 / unit, 2.0)
    return Pace(gamma * xp.sqrt(trials * 1.0), unit, greatest)


def _scaled(inner: Regressor, belief: Belief, contexts: Contexts) -> Prediction:
    prediction = inner.predict(belief[0], contexts)
    xp = namespace(prediction.mean)
    return Prediction(xp.asarray(prediction.mean) / belief[1].unit)
