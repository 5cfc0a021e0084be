"""Two towers: one network makes customers' vectors, one items', from identity and features.

    x = embedding_u + MLP(features_u),   y likewise,   P(i | u) = softmax_i(x · y_i + b_i)

fitted by the likelihood of everything that customers chose, with normal priors (λ) on all
embeddings: what features do not say is zero unless choices say so, and an item that is new is where
its features put it.
The sum over all items is taken exactly where there are few, else over items drawn by popularity
and weighed by the inverse of their chance (sampled softmax with its logQ correction). A step takes
some customers, and a few of each one's choices.

Sources: Covington, Adams and Sargin, RecSys 2016 (towers); Yi et al., RecSys 2019 (correction);
Liang, Krishnan, Hoffman and Jebara, WWW 2018 (multinomial likelihood); Kingma and Ba, ICLR 2015.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax import linen
from numpy.typing import NDArray

from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions, by_user
from bandits.types import Array

#: Customers of a step, the choices drawn of each, and the hidden units of a tower.
PEOPLE, CHOICES, UNITS = 512, 16, 64
#: Steps that a fit takes at least, however few customers there are.
FEWEST = 600


class Tower(linen.Module):
    """Vectors (B, K) of rows by their numbers (B,) and features (B, F); F may be 0."""

    rows: int
    factors: int

    @linen.compact
    def __call__(self, number: Array, features: Array) -> Array:
        """The vectors."""
        start = linen.initializers.normal(0.1 / np.sqrt(self.factors))
        vector = linen.Embed(self.rows, self.factors, embedding_init=start)(number)
        if features.shape[1]:
            hidden = linen.relu(linen.Dense(UNITS)(features))
            vector = vector + linen.Dense(self.factors)(hidden)
        return vector


class Known(NamedTuple):
    """The history and the features, on the device.

    Attributes:
        start: (U + 1,) int32, rows of ``column``.
        column: (N,) int32, what each customer chose.
        user_features: (U, F) float32.
        item_features: (I, G) float32.
        chance: (I,) float32, how likely an item is drawn.
    """

    start: Array
    column: Array
    user_features: Array
    item_features: Array
    chance: Array


def fit(
    events: Interactions,
    *,
    factors: int = 32,
    regularization: float = 10.0,
    rate: float = 0.02,
    iterations: int = 30,
    candidates: int = 2048,
    user_features: NDArray[Any] | None = None,
    item_features: NDArray[Any] | None = None,
    seed: int = 0,
) -> Factors:
    """Fits the model.

    Args:
        events: the interactions.
        factors: K.
        regularization: λ, the precision of the embeddings' prior.
        rate: Adam's, at the start; it falls to zero as a cosine.
        iterations: how often every customer is met, on average.
        candidates: items that the softmax is summed over; all, exactly, where there are no more.
        user_features: (U, F), standardised.
        item_features: (I, G), standardised.
        seed: of the random start and all draws.
    """
    known = known_of(events, user_features, item_features)
    keys = jax.random.split(jax.random.key(seed), 3)
    steps = max(FEWEST, iterations * -(-events.users // PEOPLE))
    fitted = _fit(
        start(known, keys, factors=factors), known, keys[2], jnp.int32(steps), jnp.float32(rate),
        jnp.float32(regularization), factors=factors, candidates=min(candidates, events.items),
    )  # fmt: skip
    return factors_of(fitted, known, factors=factors)


def start(known: Known, keys: Array, *, factors: int) -> dict[str, Any]:
    """What a fit begins with: small random towers (of the first two keys), biases by popularity."""
    popular = jnp.log(known.chance)
    one = jnp.zeros(1, jnp.int32)
    users, items = Tower(len(known.user_features), factors), Tower(len(popular), factors)
    return {
        "user": users.init(keys[0], one, known.user_features[:1]),
        "item": items.init(keys[1], one, known.item_features[:1]),
        "bias": popular - popular.mean(),
    }


def factors_of(parameters: Any, known: Known, *, factors: int) -> Factors:
    """The vectors and biases that fitted parameters stand for."""
    users, items, bias = (np.asarray(part) for part in _vectors(parameters, known, factors=factors))
    mean = users.mean(axis=0) if len(users) else np.zeros(factors)
    score = items @ mean + bias
    chance = np.exp(score - score.max())
    return Factors.ranking(users, items, bias, chance=chance, curvature=1.0)


def known_of(
    events: Interactions,
    user_features: NDArray[Any] | None = None,
    item_features: NDArray[Any] | None = None,
) -> Known:
    """The history and the features on the device; no features unless given."""
    rows = by_user(events)
    count = np.bincount(rows.column, minlength=events.items) + 1.0
    features = [
        np.zeros((count_, 0)) if given is None else given
        for count_, given in ((events.users, user_features), (events.items, item_features))
    ]
    return Known(
        jnp.asarray(rows.start.astype(np.int32)), jnp.asarray(rows.column),
        jnp.asarray(features[0], jnp.float32), jnp.asarray(features[1], jnp.float32),
        jnp.asarray(count / count.sum(), jnp.float32),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="factors")
def _vectors(parameters: Any, known: Known, *, factors: int) -> tuple[Array, Array, Array]:
    """All customers' and items' vectors, and the items' biases."""
    users = tower(parameters["user"], known.user_features, slice(None), factors)
    items = tower(parameters["item"], known.item_features, slice(None), factors)
    return users, items, parameters["bias"]


def tower(parameters: Any, features: Array, which: Any, factors: int) -> Array:
    """The vectors (..., K) of the rows ``which`` (...,) of one tower."""
    number = jnp.arange(features.shape[0], dtype=jnp.int32)[which]
    shape = number.shape
    flat = number.reshape(-1)
    made: Any = Tower(features.shape[0], factors).apply(parameters, flat, features[flat])
    return made.reshape(*shape, factors)


def own(parameters: Any) -> Array:
    """(R, K) the embeddings of one tower."""
    embedding: Array = parameters["params"]["Embed_0"]["embedding"]
    return embedding


@functools.partial(jax.jit, static_argnames=("factors", "candidates"), donate_argnums=0)
def _fit(
    parameters: Any, known: Known, key: Array, steps: Array, rate: Array, ridge: Array,
    *, factors: int, candidates: int,
) -> Any:  # fmt: skip
    """The parameters after ``steps`` steps of Adam."""
    missed = functools.partial(
        loss, known=known, ridge=ridge, factors=factors, candidates=candidates
    )
    return descended(missed, parameters, key, steps, rate)


def descended(
    missed: Callable[..., Array], parameters: Any, key: Array, steps: Array, rate: Array
) -> Any:
    """The parameters after ``steps`` of Adam down ``missed(parameters, key=)``.

    Every step has a key of its own; the rate falls to zero as a cosine.
    """
    adam = optax.scale_by_adam()

    def step(number: Array, carried: Any) -> Any:
        now, memory = carried
        slope = jax.grad(missed)(now, key=jax.random.fold_in(key, number))
        change, memory = adam.update(slope, memory, now)
        pace = -rate * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps)).astype(jnp.float32)
        return optax.apply_updates(now, jax.tree.map(lambda part: pace * part, change)), memory

    return jax.lax.fori_loop(0, steps, step, (parameters, adam.init(parameters)))[0]


def loss(
    parameters: Any, *, known: Known, key: Array, ridge: Array, factors: int, candidates: int
) -> Array:
    """Negative log-likelihood and prior of a step's customers, per choice."""
    whom, what, against = jax.random.split(key, 3)
    people, things = known.start.shape[0] - 1, known.chance.shape[0]
    u = jax.random.randint(whom, (PEOPLE,), 0, people, jnp.int32)
    degree = known.start[u + 1] - known.start[u]
    place = jax.random.uniform(what, (PEOPLE, CHOICES), jnp.float32) * degree[:, None]
    place = jnp.minimum(place.astype(jnp.int32), jnp.maximum(degree[:, None] - 1, 0))
    chosen = known.column[known.start[u][:, None] + place]
    if candidates == things:
        drawn, correction = jnp.arange(things, dtype=jnp.int32), jnp.zeros(things, jnp.float32)
    else:
        point = jax.random.uniform(against, (candidates,), jnp.float32)
        drawn = jnp.searchsorted(jnp.cumsum(known.chance), point).astype(jnp.int32)
        drawn = jnp.minimum(drawn, things - 1)
        correction = -jnp.log(known.chance[drawn] * candidates)
    x = tower(parameters["user"], known.user_features, u, factors)
    y = tower(parameters["item"], known.item_features, drawn, factors)
    theirs = tower(parameters["item"], known.item_features, chosen, factors)
    bias = parameters["bias"]
    everything = jax.nn.logsumexp(x @ y.T + bias[drawn] + correction, axis=1)
    hit = (jnp.einsum("bk,bck->bc", x, theirs) + bias[chosen]).mean(axis=1)
    missed = (degree * (everything - hit)).sum()
    prior = (own(parameters["user"])[u] ** 2).sum()
    prior += PEOPLE / people * (own(parameters["item"]) ** 2).sum()
    return (missed + 0.5 * ridge * prior) / jnp.maximum(degree.sum(), 1)
