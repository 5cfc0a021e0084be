"""Both tasks at once: choices tell answers where few were seen, and are left alone at weight 0."""

import functools

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from bandits.recommender import joint, two_tower
from bandits.recommender.interactions import Interactions, interactions
from bandits.recommender.joint import Joint, Occasions

CUSTOMERS, ITEMS = 300, 60
NOTHING = np.zeros((CUSTOMERS, 1))


@functools.cache
def world() -> tuple[Interactions, Occasions, NDArray[np.float64]]:
    """One taste tells what is chosen, and the slope: few occasions, many choices."""
    draw = np.random.default_rng(5)
    taste = draw.normal(size=CUSTOMERS)
    chance = special.softmax(np.outer(taste, draw.normal(size=ITEMS)), axis=1)
    items = np.concatenate([draw.choice(ITEMS, 30, p=one) for one in chance])
    events = interactions(np.repeat(np.arange(CUSTOMERS), 30), items)
    user = np.repeat(np.arange(CUSTOMERS), 12)
    depth, week = draw.choice([0.0, 0.1, 0.3], len(user)), draw.integers(0, 5, len(user))
    odds = -1.0 + 0.3 * week + draw.normal(size=CUSTOMERS)[user] + (3.0 + 3.0 * taste[user]) * depth
    bought = draw.random(len(user)) < special.expit(odds)
    # The last occasion's category is another one, so that all fits here are of one shape.
    category = (np.arange(len(user)) == len(user) - 1).astype(np.int64)
    occasions = Occasions(user, category, week[None], depth, bought)
    return events, occasions, 3.0 + 3.0 * taste


def fitted(weight: float, events: Interactions | None = None) -> Joint:
    history, occasions, _ = world()
    return joint.fit(
        events or history, occasions, weight=weight, factors=4, steps=400, user_features=NOTHING
    )


def test_choices_tell_answers_where_few_were_seen() -> None:
    slope = world()[2]
    together, alone = fitted(1.0).slope[:, 0], fitted(0.0).slope[:, 0]
    assert np.corrcoef(together, slope)[0, 1] > np.corrcoef(alone, slope)[0, 1] + 0.15
    assert np.corrcoef(together, slope)[0, 1] > 0.6
    assert together.mean() == pytest.approx(slope.mean(), abs=0.8)


def test_without_a_weight_choices_have_no_say() -> None:
    events = world()[0]
    others = events._replace(item=events.item[::-1])
    assert (fitted(0.0).slope == fitted(0.0, others).slope).all()
    assert (fitted(1.0).slope != fitted(1.0, others).slope).any()


def test_a_seed_is_one_fit() -> None:
    assert (fitted(1.0).slope == fitted(1.0).slope).all()


def test_categories_answer_differently_and_features_speak_for_who_was_not_seen() -> None:
    draw = np.random.default_rng(6)
    told = draw.normal(size=CUSTOMERS)
    user = np.tile(np.repeat(np.arange(CUSTOMERS - 60), 34), 2)
    category = np.repeat([0, 1], len(user) // 2)
    depth = draw.choice([0.0, 0.1, 0.3], len(user))
    slope = np.stack([2.0 + 3.0 * told, 6.0 - 3.0 * told], axis=1)
    odds = -1.0 + slope[user, category] * depth
    occasions = Occasions(
        user, category, np.zeros((1, len(user)), np.int64), depth,
        draw.random(len(user)) < special.expit(odds),
    )  # fmt: skip
    found = joint.fit(
        world()[0], occasions, weight=0.0, factors=4, precision=30.0, steps=400,
        user_features=told[:, None],
    )  # fmt: skip
    assert found.slope.shape == slope.shape
    for place in (0, 1):
        unseen = found.slope[-60:, place], slope[-60:, place]
        assert np.corrcoef(*unseen)[0, 1] > 0.95


def test_what_cannot_be_fitted_is_told() -> None:
    events, occasions, _ = world()
    none = np.zeros_like(occasions.bought)
    for wrong, message in (
        (occasions._replace(bought=none), "both needed"),
        (occasions._replace(depth=occasions.depth[1:]), "equally long"),
        (occasions._replace(user=occasions.user + 1), "must lie between"),
    ):
        with pytest.raises(ValueError, match=message):
            joint.fit(events, wrong)
    with pytest.raises(ValueError, match="not be negative"):
        joint.fit(events, occasions, weight=-1.0)


def test_it_lowers_for_cuda() -> None:
    events, occasions, _ = world()
    known = two_tower.known_of(events, NOTHING)
    keys = jax.random.split(jax.random.key(0), 4)
    parameters = two_tower.start(known, keys, factors=4) | {
        "answer": joint._start(keys[2], (2, CUSTOMERS, 4))
    }
    number = jax.ShapeDtypeStruct((), np.float32)  # type: ignore[no-untyped-call]
    whole = jax.ShapeDtypeStruct((), np.int32)  # type: ignore[no-untyped-call]
    traced = joint._fit.trace(
        parameters, known, joint._on_device(occasions), whole, keys[3], whole,
        number, number, number, number, factors=4, candidates=ITEMS,
    )  # fmt: skip
    assert traced.lower(lowering_platforms=("cuda",)).as_text()
