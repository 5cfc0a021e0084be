"""What every regressor is: a policy without the choosing.

A contextual policy is a regressor and a rule of exploration (:mod:`bandits.explore`); the two are
put together by :mod:`bandits.policies.contextual`. Any regressor goes with any rule that reads
what it predicts.
"""

from collections.abc import Callable
from typing import NamedTuple

from bandits.types import Array, Batch, Belief, Contexts, State


class Prediction(NamedTuple):
    """What is believed of every arm's mean reward in every row, in units of the reward.

    Attributes:
        mean: (B, A) float64, the expected reward.
        scale: (B, A) float64 > 0, how uncertain that mean is: its standard deviation, or the scale
            of a Student t; None where a regressor has only point estimates.
        freedom: (B, A) float64, degrees of freedom of the Student t, ``inf`` for a Gaussian; None
            with ``scale``.
        draws: (B, M, A) float64, M frozen joint draws of the mean rewards where arms are not
            independent; None where ``mean`` and ``scale`` say it all.
    """

    mean: Array
    scale: Array = None
    freedom: Array = None
    draws: Array = None


class Regressor(NamedTuple):
    """A regressor as a tuple of pure functions; see :class:`bandits.types.Policy` for the first.

    Attributes:
        name: what it is called.
        init: ``() -> state`` with nothing learnt.
        update: ``(state, batch) -> state``.
        believe: ``state -> belief``, a function of the state alone.
        predict: ``(belief, contexts) -> Prediction``.
        refresh: ``(belief, state, arm) -> belief``: what ``believe(state)`` gives, in every bit,
            where ``state`` differs from the state of ``belief`` in one arm only; it spares the
            others. None where nothing is saved.
        retrain: as of a policy; None where all is counting.
        point: ``(belief, segment, features) -> Prediction`` of one row, whose fields are (A,) but
            for ``freedom``, a float: ``predict`` in fewer calls of numpy; None where it saves
            nothing.
    """

    name: str
    init: Callable[[], State]
    update: Callable[[State, Batch], State]
    believe: Callable[[State], Belief]
    predict: Callable[[Belief, Contexts], Prediction]
    refresh: Callable[[Belief, State, int], Belief] | None = None
    retrain: Callable[[State, Batch, int], State] | None = None
    point: Callable[[Belief, int, Array], Prediction] | None = None
