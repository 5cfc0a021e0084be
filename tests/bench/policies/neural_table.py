"""The NeuralTS authors' table: Adult and Shuttle, 10,000 rows, as they prepare and encode them.

Their preparation, as their published code has it: all columns of the table as numbers (words by
their place among the column's words, what is missing -1), each row divided by its length, rows in a
random order; the context of arm a is the row in the a-th block of a vector, with zeros elsewhere.
One ridge regression over those vectors is one per arm without an intercept, which is how their
linear rows are reproduced here, to see that the task is theirs: λ = 1 and ν of their grid.
Two things differ: words are numbered by the alphabet, not as OpenML declares them, and the rows are
those of :mod:`.data`'s packages. Barter's contextual policies get the same rows of length one, one
context for all arms instead of the disjoint blocks, and an intercept. What they make of a row is
their own: the sign and logarithm of each column (most are a ten-thousandth of the largest), less
its mean and over its standard deviation in the rows met so far, nothing of the rows to come.

    python -m tests.bench.policies.neural_table --seeds 10

Source: Zhang et al., ICLR 2021 (NeuralTS), and the README of its code for the figures.
"""

import argparse
import io
import lzma
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import features, sampling
from bandits.types import Batch, Contexts
from tests.bench.policies import barter, data

Floats = NDArray[np.float64]

ROWS = 10_000
#: What is shown: ν is of their grid.
LINES = (
    "uniform",
    *(f"ridge rule={rule} nu={nu}" for rule in ("ucb", "thompson") for nu in (1, 0.1, 0.01)),
    "linear_thompson explore=0.001",
    "linear_thompson",
    "neural_linear explore=0.2",
)
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


def encoded(x: Floats, seen: int) -> NDArray[np.int64]:
    """What a policy that has met ``seen`` of the rows x (N, D) makes of them all: integers (N, D).

    Logarithms of size, standardised by the rows met; a column that was constant there is 0.
    """
    logs = np.sign(x) * np.log1p(np.abs(x) * 1e6)
    met = logs[:seen]
    spread = met.std(axis=0) if seen else np.zeros(x.shape[1])
    centre = met.mean(axis=0) if seen else spread
    scaled = np.where(spread > 0, (logs - centre) / np.where(spread > 0, spread, 1.0), 0.0)
    whole: NDArray[np.int64] = features.quantise(np.clip(scaled, -5.0, 5.0))
    return whole


def ridge_regret(rows: Rows, *, rule: str, nu: float, seed: int) -> float:
    """Regret of the authors' LinUCB ("ucb") or LinTS ("thompson"): ridge regressions, λ = 1.

    Disjoint blocks make one regression per arm. As their code has it, LinTS draws with variance
    ν s² and LinUCB adds √ν s², where s² = x·A⁻¹x (the usual LinUCB adds a multiple of s).
    """
    arms, width = int(rows.label.max()) + 1, rows.x.shape[1]
    inverse, moment = np.tile(np.eye(width), (arms, 1, 1)), np.zeros((arms, width))
    theta, rng, lost = np.zeros((arms, width)), np.random.default_rng(seed), 0
    for x, label in zip(rows.x, rows.label, strict=True):
        along = inverse @ x
        variance = along @ x
        drawn = np.sqrt(nu * variance) * rng.normal(size=arms)
        more = drawn if rule == "thompson" else np.sqrt(nu) * variance
        arm = int(np.argmax(theta @ x + more))
        lost += arm != label
        inverse[arm] -= np.outer(along[arm], along[arm]) / (1.0 + variance[arm])
        moment[arm] += x * (arm == label)
        theta[arm] = inverse[arm] @ moment[arm]
    return float(lost)


def policy_regret(rows: Rows, *, arms: int, name: str, seed: int, **options: Any) -> float:
    """Regret of a policy, a registered one or out of a file.

    It learns after every row at first and later in blocks of 2 % of the rows so far, 50 at most.
    Whenever they have grown by 15 %, 10 at least, it encodes them afresh and is fitted, or counts,
    again.
    """
    what = "file" if name.endswith(".py") else "policy"
    settings = {what: name, "options": options}
    policy = barter.made(settings, arms=arms, width=rows.x.shape[1], backend="numpy")
    x, uniform = encoded(rows.x, 0), np.random.default_rng(seed).random(len(rows.x))
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
        if begin >= due:
            x, due = encoded(rows.x, begin), begin + max(10, int(0.15 * begin))
            again = policy.retrain or (lambda _, batch, __: policy.update(policy.init(), batch))
            state = again(state, log(slice(begin)), seed)
    return float(len(x) - earned.sum())


def shown(name: str, seeds: range, lines: list[str]) -> None:
    """Print the rows of one table: mean total regret and its standard deviation over seeds.

    A line is a policy (or its file) with options, ``ridge`` with ``rule`` and ``nu``, or
    ``uniform``.
    """
    table = raw(name)
    arms = int(table.label.max()) + 1
    print(f"{name}: published LinUCB, LinTS, best row: {PUBLISHED[name]}", flush=True)
    for line in lines:
        word, *pairs = line.split()
        options = {key: _value(value) for key, value in (pair.split("=") for pair in pairs)}
        found = []
        for seed in seeds:
            rows = shuffled(table, seed)
            if word == "uniform":
                drawn = np.random.default_rng(seed).integers(arms, size=len(rows.label))
                found.append(float((drawn != rows.label).sum()))
            elif word == "ridge":
                rule, nu = str(options["rule"]), float(options["nu"])
                found.append(ridge_regret(rows, rule=rule, nu=nu, seed=seed))
            else:
                found.append(policy_regret(rows, arms=arms, name=word, seed=seed, **options))
        each = " ".join(f"{one:.0f}" for one in found)
        print(f"  {line}: {np.mean(found):.0f} ± {np.std(found):.0f} ({each})", flush=True)


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
    parser.add_argument("--policies", nargs="*", default=list(LINES))
    chosen = parser.parse_args()
    for name in chosen.tables:
        shown(name, range(chosen.first, chosen.first + chosen.seeds), chosen.policies)


if __name__ == "__main__":
    main()
