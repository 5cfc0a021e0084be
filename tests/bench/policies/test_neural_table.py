"""The NeuralTS authors' table: its linear rows are ridge regressions, its encoding is causal."""

import numpy as np

from bandits import features
from tests.bench.policies import neural_table
from tests.bench.policies.neural_table import Rows


def _rows(count: int) -> Rows:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)) * np.array([1.0, 1e-3, 1.0, 1e-5])
    return Rows(x / np.linalg.norm(x, axis=1, keepdims=True), (x[:, 0] > 0).astype(np.int64))


def test_what_is_made_of_a_row_knows_none_of_the_rows_to_come() -> None:
    x = _rows(40).x
    other = x.copy()
    other[20:] *= 7.0
    one, two = neural_table.encoded(x, 20), neural_table.encoded(other, 20)
    np.testing.assert_array_equal(one[:20], two[:20])
    assert (one[20:] != two[20:]).any()
    met = features.values(one[:20])
    np.testing.assert_allclose(met.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(met.std(axis=0), 1.0, atol=1e-3)
    assert not neural_table.encoded(x, 0).any()


def test_the_linear_rows_are_ridge_regressions_with_the_authors_widths() -> None:
    rows, nu, lost = _rows(120), 0.5, 0
    seen: list[list[tuple[np.ndarray, float]]] = [[], []]
    for x, label in zip(rows.x, rows.label, strict=True):
        scores = []
        for log in seen:
            design = np.array([row for row, _ in log]).reshape(-1, 4)
            gram = np.eye(4) + design.T @ design
            theta = np.linalg.solve(gram, design.T @ np.array([r for _, r in log]))
            scores.append(x @ theta + np.sqrt(nu) * x @ np.linalg.solve(gram, x))
        arm = int(np.argmax(scores))
        seen[arm].append((x, float(arm == label)))
        lost += arm != label
    assert neural_table.ridge_regret(rows, rule="ucb", nu=nu, seed=0) == lost
    drawn = [neural_table.ridge_regret(rows, rule="thompson", nu=nu, seed=s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 0 < lost < 40


def test_a_policy_learns_the_task_from_causal_encodings() -> None:
    rows = _rows(300)
    learnt = neural_table.policy_regret(rows, arms=2, name="linear_thompson", seed=0)
    assert learnt < 60  # of about 150 for whoever guesses
