"""The hidden truth: the fit finds what it should, and the world can be learnt."""

import numpy as np
import pytest

from bandits import policies, sampling, simplex, simulate
from bandits.types import Batch, Contexts
from service.demo import panel, world
from service.demo.segments import KEYS
from service.demo.world import Counts, Fit, Floats

BATCH = 200


def counts_of(slope: Floats, *, seed: int = 0) -> Counts:
    """Opportunities whose purchases follow the model with these slopes."""
    rng = np.random.default_rng(seed)
    shape = (len(KEYS), 12, 20)
    depth = rng.choice([0.0, 0.1, 0.2, 0.35], size=shape[1:])
    kind, week, segment = rng.normal(-1.5, 0.5, 12), rng.normal(0, 0.2, 20), rng.normal(0, 0.3, 5)
    logit = segment[:, None, None] + kind[:, None] + week + slope[:, None, None] * depth
    offered = rng.integers(200, 900, shape).astype(float)
    bought = rng.binomial(offered.astype(int), 1 / (1 + np.exp(-logit))).astype(float)
    basket = np.full((len(KEYS), world.LIST_VALUES), 500)
    return Counts(offered, bought, depth, np.ones(3), basket, 500)


def test_maximum_likelihood_recovers_the_slopes_behind_confounded_purchases() -> None:
    truth = np.array([0.0, 1.0, 2.0, 3.0, -1.0])
    errors = []
    for seed in range(5):
        counts = counts_of(truth, seed=seed)
        used = counts.offered > 0
        found, covariance, design = world._maximum_likelihood(counts, used)
        errors.append((found[:5] - truth) / np.sqrt(np.diag(covariance))[:5])
        conversion = world._conversion(counts, used, design, found)
        flat = conversion[0].max() - conversion[0].min()
        assert flat < 0.02
        assert (np.diff(conversion[3]) > 0).all()
        assert (np.diff(conversion[4]) < 0).all()
    assert np.abs(np.mean(errors)) < 0.6
    assert 0.5 < np.std(errors) < 1.6


@pytest.fixture(scope="module")
def fit() -> Fit:
    return world.fit(panel.synthetic())


def test_opportunities_are_counted_as_described(fit: Fit) -> None:
    found = panel.synthetic()
    counts = world.count(found, category=fit.category, known=fit.known, segment=fit.segment)
    assert counts.bought.sum() <= counts.offered.sum() == counts.weight.sum()
    assert (counts.bought <= counts.offered).all()
    # One household by hand: the kinds it bought early, times the late weeks it came.
    row = int(np.argmax(counts.weight))
    mine = found.column("household") == fit.known.id[row]
    week, product = found.column("week"), found.column("product_id")
    drinks = product <= 7
    usual = np.unique(product[mine & drinks & (week <= 20)]).size
    came = np.unique(week[mine & (week > 20)]).size
    assert counts.weight[row] == usual * came
    shelf = found.lines.filter(found.lines.column("product_id").to_numpy() == 1)
    depth = 1 - shelf.column("paid_minor").to_numpy() / shelf.column("list_minor").to_numpy()
    late = shelf.column("week").to_numpy() == 30
    kind = sorted({k for c, k in panel.SYNTHETIC_KINDS if c == fit.category}).index(
        "SOFT DRINKS: COLA"
    )
    assert counts.depth[kind, 9] == pytest.approx(depth[late].mean(), abs=0.005)


def test_thompson_sampling_halves_the_regret_of_an_equal_split(fit: Fit) -> None:
    ratios = [run(fit, seed=seed, decisions=10_000) for seed in range(3)]
    assert np.mean(ratios) < 0.5, ratios


def run(fit: Fit, *, seed: int, decisions: int) -> float:
    """Return regret over that of an equal split, by the library alone."""
    truth, (segments, arms) = fit.world, fit.world.conversion.shape
    value = np.round(fit.typical_minor * (truth.margin_rate - truth.percent / 100))
    policy = policies.make(
        "thompson_hierarchical",
        arms=arms,
        segments=segments,
        value=[value.tolist()] * segments,
        depth=[(truth.percent / 100).tolist()] * segments,
    )
    visits = simulate.visits(seed, decisions, segment_of_unit=fit.segment, weight=fit.weight)
    state, regret, split = policy.init(), 0.0, 0.0
    mask = np.ones((segments, arms), dtype=bool)
    every = Contexts(np.arange(segments, dtype=np.int32), np.zeros((segments, 0), np.int64))
    for start in range(0, decisions, BATCH):
        some = simulate.some(visits, slice(start, start + BATCH))
        table = np.asarray(policy.probabilities(policy.believe(state), every, mask))
        chances = np.asarray(simplex.guard(table, mask, floor=0.01))[some.segment]
        u = sampling.uniforms(f"seed-{seed}", map(str, range(start, start + BATCH)))
        arm = sampling.draws(chances, u).astype(np.int64)
        found = simulate.react(truth, some, arm)
        batch = Batch(
            contexts=Contexts(some.segment.astype(np.int32), np.zeros((BATCH, 0), np.int64)),
            arm=arm.astype(np.int32),
            simplex=chances,
            conversions=found.bought.astype(np.int64),
            reward=found.margin_minor - found.discount_minor,
            sign=np.ones(BATCH, np.int64),
        )
        state = policy.update(state, batch)
        regret += simulate.regret_minor(truth, some.segment, arm).sum()
        split += simulate.equal_split_regret_minor(truth, some.segment).sum()
    return regret / split
