"""One vector of a customer for both: what is chosen, and how a discount is answered.

A recommender's vectors can be context for a discount policy: fitted first, used afterwards. Here
both are fitted at once, over one tower of customers (:mod:`bandits.recommender.two_tower`)::

    x[u] = embedding[u] + MLP(features[u])
    P(i | u) = softmax_i(x[u] · y[i] + b[i])
    P(buys | u, c, d) = sigmoid(fixed effects + level[u, c] + slope[u, c] d)
    level[u, c] = x[u] · l[c] + own level,   slope[u, c] = s[c] + x[u] · t[c] + own slope

``c`` is what the occasion is about, such as a category of products, ``d`` the depth in tens of per
cent. What is minimised is the mean loss of an occasion plus ``weight`` times that of a choice; with
weight 0 nothing is learnt of choices and the customers' answers alone make their vectors. Priors
are normal: ``precision`` on embeddings, ``l`` and ``t``, `OWN` on what is a customer's own in one
category; so who was seen little there answers as their vector says.

Slopes are modes, not posterior means: compare them with one another (ranks, fifths) rather than
trust their size.

Source: Caruana, Machine Learning 28 (1997), tasks that share a representation; Singh and Gordon,
KDD 2008, factors that several tables share. The towers' sources are named there.

Letters: ``C`` categories, ``R`` occasions, ``U`` customers, ``I`` items, ``K`` factors.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bandits.recommender import two_tower
from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions
from bandits.recommender.two_tower import Known
from bandits.types import Array

#: Occasions of a step, and a faint precision that keeps fixed effects finite.
ROWS, RIDGE = 4096, 1e-3
#: Precisions of customers' own levels and slopes (per tenth) beside what their vectors say.
OWN = (1.0, 10.0)
#: Arrays are filled up to this and its powers of four, so that a growing log compiles seldom.
SMALLEST = 1 << 14
#: Depth is counted in this, so that weights of level and slope are of one size.
TENTH = 0.1


class Occasions(NamedTuple):
    """Times at which a customer could have bought something at a depth of discount.

    Attributes:
        user: (R,) the customer.
        category: (R,) what it was about, from 0.
        fixed: (F, R) codes from 0 of what moves all customers, such as the product and the week.
        depth: (R,) the discount in force, 0 to 1.
        bought: (R,) whether it became a purchase.
    """

    user: Array
    category: Array
    fixed: Array
    depth: Array
    bought: Array


class Joint(NamedTuple):
    """What was fitted.

    Attributes:
        factors: the recommender; its ``users`` (U, K) are the vectors that both tasks share.
        slope: (U, C) change of the log odds per unit of depth, of every customer by category.
    """

    factors: Factors
    slope: NDArray[np.float64]


def fit(
    events: Interactions,
    occasions: Occasions,
    *,
    weight: float = 0.1,
    factors: int = 16,
    precision: float = 10.0,
    regularization: float = 10.0,
    rate: float = 0.02,
    steps: int = 1000,
    candidates: int = 2048,
    user_features: NDArray[Any] | None = None,
    seed: int = 0,
) -> Joint:
    """Fits both tasks.

    Args:
        events: what customers chose.
        occasions: what they answered.
        weight: of the mean loss of a choice, beside 1 for that of an occasion.
        factors: K.
        precision: of embeddings and of what they say, per unit of the answers' log likelihood.
        regularization: of the recommender's embeddings, per unit of its log likelihood.
        rate: Adam's, at the start; it falls to zero as a cosine.
        steps: of Adam, each of ``ROWS`` occasions and, with a weight, as many customers and
            choices as a two-tower step takes.
        candidates: items that the softmax is summed over; all, exactly, where there are no more.
        user_features: (U, F), standardised.
        seed: of the random start and all draws.

    Raises:
        ValueError: a negative weight; no occasions; arrays of different lengths; customers unknown
            to ``events``; all or none of the occasions became purchases.
    """
    _check(events, occasions, weight)
    known = two_tower.known_of(events, user_features)
    known = known._replace(column=_filled(known.column))
    categories = int(np.max(occasions.category)) + 1
    keys = jax.random.split(jax.random.key(seed), 4)
    parameters = two_tower.start(known, keys, factors=factors) | {
        "answer": _start(keys[2], (categories, events.users, factors))
    }
    fitted = _fit(
        parameters, known, _on_device(occasions), jnp.int32(len(occasions.user)), keys[3],
        jnp.int32(steps), jnp.float32(rate), jnp.float32(weight), jnp.float32(precision),
        jnp.float32(regularization), factors=factors, candidates=min(candidates, events.items),
    )  # fmt: skip
    found = two_tower.factors_of(fitted, known, factors=factors)
    slope, tilt, own = (
        np.asarray(fitted["answer"][n], np.float64) for n in ("slope", "tilt", "own")
    )
    return Joint(found, (slope + found.users.astype(np.float64) @ tilt.T + own[1].T) / TENTH)


def _check(events: Interactions, occasions: Occasions, weight: float) -> None:
    rows = len(occasions.user)
    bought = np.asarray(occasions.bought)
    if weight < 0.0:
        raise ValueError(f"weight must not be negative: {weight}")
    if any(np.shape(part)[-1] != rows for part in occasions):
        raise ValueError("occasions must be equally long")
    if not rows or bought.all() or not bought.any():
        raise ValueError("purchases and occasions without a purchase are both needed")
    if np.min(occasions.user) < 0 or np.max(occasions.user) >= events.users:
        raise ValueError(f"customers of occasions must lie between 0 and {events.users - 1}")


def _on_device(occasions: Occasions) -> Occasions:
    """Occasions, filled up, with their fixed effects numbered through."""
    sizes = np.max(occasions.fixed, axis=1, initial=-1) + 1
    if sizes.sum() > SMALLEST:
        raise ValueError(f"{sizes.sum()} fixed effects; {SMALLEST} at most")
    codes = np.asarray(occasions.fixed) + (np.cumsum(sizes) - sizes)[:, None]
    whole = (jnp.asarray(part, jnp.int32) for part in (occasions.user, occasions.category, codes))
    real = (np.asarray(occasions.depth) / TENTH, occasions.bought)
    return Occasions(*(_filled(p) for p in (*whole, *(jnp.asarray(r, jnp.float32) for r in real))))


def _filled(values: Array) -> Array:
    """An array with its last axis filled up with zeros."""
    size = SMALLEST
    while size < values.shape[-1]:
        size *= 4
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, size - values.shape[-1])])


def _start(key: Array, shape: tuple[int, int, int]) -> dict[str, Array]:
    """The response's parameters before a fit: nobody differs but by their vector's small noise."""
    categories, users, factors = shape
    level, tilt = jax.random.normal(key, (2, categories, factors), jnp.float32) / factors**0.5
    return {
        "fixed": jnp.zeros(SMALLEST, jnp.float32),
        "base": jnp.zeros(categories, jnp.float32),
        "slope": jnp.zeros(categories, jnp.float32),
        "own": jnp.zeros((2, categories, users), jnp.float32),
        "level": level,
        "tilt": tilt,
    }


@functools.partial(jax.jit, static_argnames=("factors", "candidates"), donate_argnums=0)
def _fit(
    parameters: Any, known: Known, occasions: Occasions, count: Array, key: Array, steps: Array,
    rate: Array, weight: Array, precision: Array, regularization: Array,
    *, factors: int, candidates: int,
) -> Any:  # fmt: skip
    """The parameters after ``steps`` of Adam; without a weight, choices have no say."""
    choices = functools.partial(
        two_tower.loss, known=known, ridge=regularization, factors=factors, candidates=candidates
    )

    def missed(now: Any, *, key: Array) -> Array:
        of_rows, of_choices = jax.random.split(key)
        total = _missed(now, known, occasions, count, of_rows, precision, factors)
        said: Array = jax.lax.cond(
            weight > 0.0,
            lambda: weight * choices(now, key=of_choices),
            lambda: jnp.zeros_like(total),
        )
        return total + said

    return two_tower.descended(missed, parameters, key, steps, rate)


def _missed(
    parameters: Any, known: Known, occasions: Occasions, count: Array, key: Array,
    precision: Array, factors: int,
) -> Array:  # fmt: skip
    """Negative log likelihood of a step's occasions and prior, per occasion."""
    answer = parameters["answer"]
    row = jax.random.randint(key, (ROWS,), 0, count, jnp.int32)
    user, category = occasions.user[row], occasions.category[row]
    x = two_tower.tower(parameters["user"], known.user_features, user, factors)
    own = answer["own"][:, category, user]
    level = answer["base"][category] + (x * answer["level"][category]).sum(axis=1) + own[0]
    slope = answer["slope"][category] + (x * answer["tilt"][category]).sum(axis=1) + own[1]
    odds = answer["fixed"][occasions.fixed[:, row]].sum(axis=0) + level
    odds += slope * occasions.depth[row]
    missed = (jax.nn.softplus(odds) - occasions.bought[row] * odds).mean()
    shared = (two_tower.own(parameters["user"]), answer["level"], answer["tilt"])
    prior = precision * sum((part**2).sum() for part in shared)
    prior += (jnp.asarray(OWN, jnp.float32)[:, None, None] * answer["own"] ** 2).sum()
    prior += RIDGE * (answer["fixed"] ** 2).sum()
    return missed + 0.5 * prior / count
