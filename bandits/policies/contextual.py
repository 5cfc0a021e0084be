"""What the contextual policies share: a regressor, and a rule that turns beliefs into a simplex."""

from collections.abc import Callable

import numpy as np

from bandits import features as quantised
from bandits.backend import Backend, is_traced
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import Array, Belief, Contexts, Policy

_INT64, _BOOL = np.dtype(np.int64), np.dtype(bool)
#: ``(prediction, mask (B, A), belief) -> simplex (B, A)``.
Rule = Callable[[Prediction, Array, Belief], Array]
#: The same for one row: ``(prediction (A,), mask (A,)) -> simplex (A,)``.
Alone = Callable[[Prediction, Array], Array]


def policy(
    name: str,
    regressor: Regressor,
    rule: Rule,
    *,
    arms: int,
    segments: int,
    features: int,
    space: Backend,
    alone: Alone | None = None,
) -> Policy:
    """The policy that serves by ``rule`` what ``regressor`` predicts.

    The JAX path pads the rows of a batch to a power of two, so that it compiles for few shapes.
    ``alone`` is what ``rule`` amounts to for one row, where there is a quicker way to it.
    """

    def simplices(belief: Belief, contexts: Contexts, mask: Array) -> Array:
        return rule(regressor.predict(belief, contexts), mask, belief)

    compiled = space.jit(simplices)

    def probabilities(belief: Belief, contexts: Contexts, mask: Array) -> Array:
        check_shapes(contexts, mask, arms=arms, features=features)
        if space.name != "jax":
            check_values(contexts, mask, segments=segments)
            return simplices(belief, contexts, mask)
        if is_traced(contexts.segment, contexts.features, mask, *leaves(belief)):
            return simplices(belief, contexts, mask)
        check_values(contexts, mask, segments=segments)
        rows = mask.shape[0]
        padded = np.arange(1 << max(0, rows - 1).bit_length()) % rows
        wide = Contexts(*(np.asarray(field)[padded] for field in contexts))
        return compiled(belief, wide, np.asarray(mask)[padded])[:rows]

    return Policy(
        name,
        regressor.init,
        regressor.update,
        regressor.believe,
        probabilities,
        regressor.retrain,
        _single(regressor, alone, arms=arms, segments=segments, features=features),
    )


def _single(
    regressor: Regressor, alone: Alone | None, *, arms: int, segments: int, features: int
) -> Callable[[Belief, int, Array, Array], Array] | None:
    point = regressor.point
    if point is None or alone is None:
        return None

    def single(belief: Belief, segment: int, row: Array, mask: Array) -> Array:
        if row.shape != (features,) or mask.shape != (arms,):
            raise ValueError(f"must be {(features,)}, {(arms,)}, not {row.shape}, {mask.shape}")
        if not 0 <= segment < segments:
            raise ValueError(f"segment must be in [0, {segments})")
        if not np.count_nonzero(mask):
            raise ValueError("mask has no eligible arm")
        return alone(point(belief, segment, row), mask)

    return single


def check_shapes(contexts: Contexts, mask: Array, *, arms: int, features: int) -> None:
    """Raise unless the shapes and types of a call to ``probabilities`` are right."""
    if contexts.segment.ndim != 1:
        raise ValueError("contexts.segment must have shape (B,)")
    rows = contexts.segment.shape[0]
    if contexts.features.shape != (rows, features):
        raise ValueError(
            f"contexts.features must be {(rows, features)}, not {contexts.features.shape}"
        )
    if contexts.features.dtype != _INT64:
        raise TypeError(f"contexts.features must be int64, not {contexts.features.dtype}")
    if mask.shape != (rows, arms):
        raise ValueError(f"mask must be (B, A) with A = {arms}, not {mask.shape}")
    if mask.dtype != _BOOL:
        raise TypeError(f"mask must be bool, not {mask.dtype}")


def check_values(contexts: Contexts, mask: Array, *, segments: int) -> None:
    """Raise unless every row has a segment, an eligible arm and features within their limit."""
    segment, allowed = np.asarray(contexts.segment), np.asarray(mask)
    found = np.asarray(contexts.features)
    if segment.size == 1:  # a single decision, for which numpy's reductions are the dearer ones
        sound, served = 0 <= segment.item() < segments, bool(np.count_nonzero(allowed))
    else:
        sound = not segment.size or bool(0 <= segment.min() <= segment.max() < segments)
        served = bool(allowed.all() or np.logical_or.reduce(allowed, axis=1).all())
    if not sound:
        raise ValueError(f"segment must be in [0, {segments})")
    if not served:
        raise ValueError("mask has a row without an eligible arm")
    quantised.check(found, rows=found.shape[0], width=found.shape[1])


def leaves(belief: Belief) -> list[Array]:
    """The arrays of a belief, nested named tuples included."""
    if isinstance(belief, tuple):
        return [leaf for part in belief for leaf in leaves(part)]
    return [] if belief is None else [belief]
