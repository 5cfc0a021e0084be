"""What customers may want next, and vectors of customers and items for the bandit's context.

Models fit a history (``interactions.py``) and give one result, ``factors.Factors``; serving reads
that in numpy: ``factors.top``, and ``fold_in.customer`` for somebody new. Fitting imports JAX,
so models are loaded by name.

>>> import numpy as np
>>> from bandits import recommender
>>> from bandits.recommender import factors, fold_in, interactions
>>> draw = np.random.default_rng(0)
>>> events = interactions.interactions(draw.integers(0, 40, 600), draw.integers(0, 30, 600))
>>> model = recommender.fit("als_implicit", events, factors=4, iterations=3)
>>> newcomer = fold_in.customer(model, np.array([3, 7, 9]))
>>> factors.top(model, newcomer.vector, 5, seen=np.array([3, 7, 9])).shape
(5,)
"""

import importlib
from typing import Any

from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions

#: The models; each is a module with ``fit(events, **options) -> Factors``.
NAMES = ("popularity", "als_explicit", "als_implicit", "bpr", "nmf", "two_tower")


def fit(name: str, events: Interactions, **options: Any) -> Factors:
    """The model called ``name``, one of :data:`NAMES`, fitted to ``events``.

    Raises:
        ValueError: there is no such model.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {', '.join(NAMES)}, not {name!r}")
    fitted: Factors = importlib.import_module(f"bandits.recommender.{name}").fit(events, **options)
    return fitted
