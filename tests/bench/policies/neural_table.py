"""The NeuralTS authors' table: Adult and Shuttle, 10,000 rows, as they prepare and encode them.

Their preparation, as their published code has it: all columns of the table as numbers (words by
their place among the column's words, what is missing -1), each row divided by its length, rows in a
random order; the context of arm a is the row in the a-th block of a vector, with zeros elsewhere.
One ridge regression over those vectors is one per arm without an intercept, which is how their
linear rows are reproduced here, by Barter's own sums and rules: λ = 1 and ν of their grid.
Two things differ: words are numbered by the alphabet, not as OpenML declares them, and the rows are
those of :mod:`.data`'s packages. Barter's contextual policies have an intercept and get each
column's logarithm of size, standardised over the table.

    python -m tests.bench.policies.neural_table --seeds 10

Source: Zhang et al., ICLR 2021 (NeuralTS), and the README of its code for the figures.
"""

import argparse
import io
import lzma
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import explore, features, ledger, policies, sampling
from bandits.backend import numpy_backend
from bandits.regressors import linear
from bandits.types import Batch, Contexts
from tests.bench.policies import data

Floats = NDArray[np.float64]

ROWS = 10_000
#: What ν is chosen from.
GRID = (1.0, 0.1, 0.01)
#: Total regret as published: (LinUCB, LinTS, the best row).
PUBLISHED = {"adult": (2078.0, 2118.0, 2061.0), "shuttle": (957.0, 1046.0, 182.0)}


class Rows(NamedTuple):
    """One seed of a table: ``x`` (N, D) rows of length one, ``label`` (N,)."""

    x: Floats
    label: NDArray[np.int64]


def raw(name: str) -> Rows:
    """The whole table, rows divided by their length."""
    x, label = {"adult": _adult, "shuttle": _shuttle}[name](data.fetched(name))
    return Rows(x / np.linalg.norm(x, axis=1, keepdims=True), label)


def _adult(content: bytes) -> tuple[Floats, NDArray[np.int64]]:
    from pyarrow import parquet

    columns = parquet.read_table(io.BytesIO(content)).to_pydict()
    label = np.unique(columns.pop("income"), return_inverse=True)[1]
    return np.array([_numbers(column) for column in columns.values()]).T, label


def _numbers(column: list[Any]) -> Floats:
    """Numbers as they are; words by their place in the alphabet, "?" being missing: -1."""
    if not isinstance(column[0], str):
        return np.array(column, dtype=np.float64)
    words = sorted(set(column) - {"?"})
    return np.array([words.index(word) if word != "?" else -1.0 for word in column])


def _shuttle(content: bytes) -> tuple[Floats, NDArray[np.int64]]:
    *columns, (codes, _) = data._data_frame(lzma.decompress(content))
    label = np.unique(np.asarray(codes), return_inverse=True)[1]
    return np.array([column for column, _ in columns], dtype=np.float64).T, label


def shuffled(table: Rows, seed: int, rows: int = ROWS) -> Rows:
    """The rows of a seed."""
    order = np.random.default_rng(1000 + seed).permutation(len(table.label))[:rows]
    return Rows(table.x[order], table.label[order])


def inputs(table: Rows) -> Floats:
    """What Barter's policies get: logarithms of size, standardised over the table."""
    x = np.sign(table.x) * np.log1p(np.abs(table.x) * 1e6)
    return data.standardised(x)


def linear_regret(rows: Rows, *, rule: str, scale: float, seed: int) -> float:
    """Regret of "ucb" or "thompson" over ridge regressions without an intercept, λ = 1."""
    space, arms = numpy_backend(), int(rows.label.max()) + 1
    x, uniform = features.quantise(rows.x), np.random.default_rng(seed).random(len(rows.label))
    sums = linear.zeros(arms=arms, width=x.shape[1])
    one, mask, lost = np.ones(1, np.int64), np.ones((1, arms), bool), 0
    segment, none = np.zeros(1, np.int32), np.zeros((1, 0), np.int64)
    for t in range(len(rows.label)):
        belief = linear.posterior(sums, space=space, precision=1.0, spread=scale)
        guess = linear.predicted(belief, features.values(x[t : t + 1]), space=space)
        choose: Callable[..., Any] = explore.thompson
        p = explore.ucb(guess, mask, alpha=1.0) if rule == "ucb" else choose(guess, mask)
        arm = sampling.draws(p, uniform[t : t + 1]).astype(np.int32)
        reward = (arm == rows.label[t]).astype(np.int64)
        lost += 1 - int(reward[0])
        batch = Batch(Contexts(segment, none), arm, p, reward, reward, one)
        more = linear.contribution(x[t : t + 1], batch, arms=arms, space=space)
        sums = ledger.add(sums, more)
    return float(lost)


def policy_regret(
    rows: Rows, columns: Floats, *, arms: int, name: str, seed: int, **options: Any
) -> float:
    """Regret of a registered policy that gets ``columns`` (N, D) of the rows.

    It learns after every row at first and later in blocks of 2 % of the rows so far, 50 at most,
    and is fitted again whenever the rows have grown by 15 %, 10 at least.
    """
    policy = policies.make(name, arms=arms, segments=1, features=columns.shape[1], **options)
    x, uniform = features.quantise(columns), np.random.default_rng(seed).random(len(columns))
    served, earned = np.zeros(len(x), np.int32), np.zeros(len(x), np.int64)
    shares = np.zeros((len(x), arms))
    state, begin, due = policy.init(), 0, 20

    def log(part: slice) -> Batch:
        one = np.ones(len(x[part]), np.int64)
        contexts = Contexts((0 * one).astype(np.int32), x[part])
        return Batch(contexts, served[part], shares[part], earned[part], earned[part], one)

    while begin < len(x):
        part = slice(begin, begin + int(np.clip(0.02 * begin, 1, 50)))
        mask = np.ones((len(x[part]), arms), bool)
        p = policy.probabilities(policy.believe(state), log(part).contexts, mask)
        shares[part], served[part] = p, sampling.draws(p, uniform[part])
        earned[part] = served[part] == rows.label[part]
        state, begin = policy.update(state, log(part)), part.stop
        if policy.retrain is not None and begin >= due:
            state = policy.retrain(state, log(slice(begin)), seed)
            due = begin + max(10, int(0.15 * begin))
    return float(len(x) - earned.sum())


def shown(name: str, seeds: range, lines: list[str]) -> None:
    """Print the rows of one table: mean total regret and its standard deviation over seeds."""
    table = raw(name)
    wide, arms = inputs(table), int(table.label.max()) + 1
    print(f"{name}: published LinUCB, LinTS, best row: {PUBLISHED[name]}", flush=True)
    for rule in ("ucb", "thompson"):
        for scale in GRID:
            found = [
                linear_regret(shuffled(table, seed), rule=rule, scale=scale, seed=seed)
                for seed in seeds
            ]
            print(
                f"  linear {rule} ν={scale}: {np.mean(found):.0f} ± {np.std(found):.0f}", flush=True
            )
    for line in lines:
        word, *pairs = line.split()
        options = {key: _value(value) for key, value in (pair.split("=") for pair in pairs)}
        found = []
        for seed in seeds:
            columns = shuffled(Rows(wide, table.label), seed).x
            rows = shuffled(table, seed)
            found.append(policy_regret(rows, columns, arms=arms, name=word, seed=seed, **options))
        print(f"  {line}: {np.mean(found):.0f} ± {np.std(found):.0f}", flush=True)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--tables", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--policies", nargs="*", default=["linear_thompson", "neural_linear"])
    chosen = parser.parse_args()
    for name in chosen.tables:
        shown(name, range(chosen.first, chosen.first + chosen.seeds), chosen.policies)


if __name__ == "__main__":
    main()
