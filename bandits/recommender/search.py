"""Options that would have foreseen the latest events best: random draws, halved in rounds.

The latest share of the history is held back. Options are drawn at random; all are fitted with few
iterations, the better half (by NDCG) goes on with twice as many, and so on to the last.

Sources: Bergstra and Bengio, JMLR 2012 (random search); Jamieson and Talwalkar, AISTATS 2016
(successive halving).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bandits import recommender
from bandits.recommender import metrics
from bandits.recommender.interactions import Interactions, split_by_time

#: What is searched unless told; regularisation and confidence hang on the size of the history.
SPACES: dict[str, dict[str, Sequence[Any]]] = {
    "als_explicit": {
        "factors": (8, 16, 32, 64),
        "regularization": (0.03, 0.05, 0.08, 0.1, 0.13, 0.2),
    },
    "als_implicit": {
        "factors": (16, 32, 64, 128),
        "confidence": (1.0, 3.0, 10.0, 30.0),
        "regularization": (3.0, 10.0, 30.0, 100.0, 300.0),
        "scaling": (0.0, 0.5, 1.0),
    },
    "bpr": {
        "factors": (16, 32, 64),
        "regularization": (0.001, 0.003, 0.01, 0.03),
        "rate": (0.03, 0.1, 0.3),
    },
    "nmf": {"factors": (8, 16, 32, 64), "regularization": (0.1, 1.0, 3.0, 10.0)},
    "two_tower": {
        "factors": (16, 32, 64),
        "regularization": (0.3, 1.0, 3.0, 10.0),
        "rate": (0.01, 0.03),
    },
}


class Trial(NamedTuple):
    """One fit.

    Attributes:
        options: what it was fitted with.
        score: mean NDCG over the customers of the future, or for ratings the RMSE's negative.
    """

    options: dict[str, Any]
    score: float


def search(
    name: str,
    events: Interactions,
    *,
    space: Mapping[str, Sequence[Any]] | None = None,
    also: Sequence[Mapping[str, Any]] = (),
    draws: int = 16,
    iterations: int = 4,
    share: float = 0.2,
    count: int = 20,
    seed: int = 0,
    split: tuple[Interactions, Interactions] | None = None,
) -> list[Trial]:
    """All fits, the last round's first and the best of it at the front.

    Args:
        name: the model.
        events: the history.
        space: values to draw from for each option, :data:`SPACES` unless given.
        also: options that are tried beside those drawn, such as the ones in use.
        draws: how many options are tried in the first round.
        iterations: of the first round; each later round has twice as many as the one before.
        share: the part that is held back, the latest.
        count: length of the lists that are judged.
        seed: of the draws.
        split: another past and future instead.
    """
    past, future = split_by_time(events, share=share) if split is None else split
    drawn = _drawn(SPACES[name] if space is None else space, draws, seed)
    rest = [dict(one) for one in also] + [one for one in drawn if one not in also]
    trials: list[Trial] = []
    while rest:
        judged = [
            Trial(options, _score(name, past, future, options, count))
            for options in ({**one, "iterations": iterations} for one in rest)
        ]
        judged.sort(key=lambda trial: -trial.score)
        trials = judged + trials
        better = judged[: len(judged) // 2]
        rest = [{k: v for k, v in one.options.items() if k != "iterations"} for one in better]
        iterations *= 2
    return trials


def _drawn(space: Mapping[str, Sequence[Any]], draws: int, seed: int) -> list[dict[str, Any]]:
    """Different options at random, as many as there are if there are fewer."""
    sizes = [len(values) for values in space.values()]
    total = int(np.prod(sizes))
    picked = np.random.default_rng(seed).choice(total, min(draws, total), replace=False)
    places = np.stack(np.unravel_index(picked, sizes), axis=1)
    return [
        {name: values[at] for (name, values), at in zip(space.items(), row, strict=True)}
        for row in places
    ]


def _score(
    name: str, past: Interactions, future: Interactions, options: dict[str, Any], count: int
) -> float:
    model = recommender.fit(name, past, **options)
    if name == "als_explicit":
        return -metrics.rmse(model, future)
    return float(metrics.ranking(model, past, future, count=count).ndcg.mean())
