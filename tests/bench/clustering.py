"""K-means and Gaussian mixtures of a million customers, beside scikit-learn, in one run.

    python -m tests.bench.clustering --repeats 5

A million rows of 16 features in float32, five clusters of 35, 25, 20, 12 and 8 %, whose centres
and rows are standard normal. Every fit is a process of its own, ours and scikit-learn's in turn,
with the same seed and number of threads (``OMP_NUM_THREADS``, ``OPENBLAS_NUM_THREADS``; ours keep
BLAS to one and have so many themselves). scikit-learn has settings for speed: one start
(``n_init=1``) of Lloyd, and 20 passes of EM at most from k-means++, which do not always converge.
Ours are the defaults. Seconds are of the fit alone, labels included for K-means. Quality is judged
here, alike for both, in double precision: the inertia, or the mean log likelihood.

Results replace those of the same case, threads and rows in ``clustering.json``; ``clustering.md``
is the table of them all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from bandits.customers import clustering
from tests.bench.policies import environments

SYSTEMS = ("Barter", "scikit-learn")
CASES = ("kmeans", "diagonal", "full")
SHARES = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
RESULTS = Path(__file__).with_name("clustering.json")
HEAD = """# Clustering a million customers, beside scikit-learn

Made by `python -m tests.bench.clustering`, whose docstring says what is measured: median seconds
(least to greatest) of fits with the same seeds in turn, and medians of their quality: inertia (less
is better) of K-means, mean log likelihood (more is better) of mixtures.

Measured on 2026-11-24 on two cores that several other processes wanted, too. Two threads of
scikit-learn wait for each other there, most of all in its mixtures, so the rows of one thread are
the fairer ones; an earlier harness had it at 0.79, 2.8 and 15.6 s with two threads on two quiet
cores.

"""


def customers(rows: int = 1_000_000, *, seed: int = 3) -> NDArray[np.float32]:
    """The rows (N, 16) that are clustered."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, 16))
    cluster = rng.choice(5, rows, p=SHARES)
    noise = rng.normal(size=(rows, 16)).astype(np.float32)
    return (centres[cluster] + noise).astype(np.float32)


def fit(x: NDArray[np.float32], case: str, seed: int, threads: int) -> dict[str, Any]:
    """One timed fit of ours, as the other script reports scikit-learn's."""
    start = time.perf_counter()
    if case == "kmeans":
        clusters = clustering.kmeans(x, 5, seed=seed, threads=threads)
        clustering.nearest(x, clusters.mean, threads=threads)
        return {"seconds": time.perf_counter() - start, "mean": clusters.mean.tolist()}
    kind: Any = case
    found = clustering.mixture(x, 5, seed=seed, covariance=kind, threads=threads)
    seconds = time.perf_counter() - start
    parts = {name: getattr(found, name).tolist() for name in ("weight", "mean", "covariance")}
    return {"seconds": seconds, **parts}


def quality(x: NDArray[np.float32], case: str, found: dict[str, Any]) -> float:
    """The inertia of means, or the mean log likelihood of a mixture, in double precision."""
    total, mean = 0.0, np.array(found["mean"])
    for start in range(0, len(x), 1 << 16):
        rows = x[start : start + (1 << 16)].astype(np.float64)
        if case == "kmeans":
            apart = np.square(rows).sum(axis=1) + (
                np.square(mean).sum(axis=1)[:, None] - 2 * mean @ rows.T
            ).min(axis=0)
            total += float(apart.sum())
        else:
            mixture = clustering.Mixture(
                np.array(found["weight"]), mean, np.array(found["covariance"]), np.array(0.0)
            )
            total += float(np.logaddexp.reduce(clustering.log_densities(rows, mixture), 1).sum())
    return total if case == "kmeans" else total / len(x)


def measured(path: Path, system: str, case: str, seed: int, threads: int) -> dict[str, Any]:
    """One fit in a process of its own."""
    if system == "scikit-learn":
        script = str(Path(__file__).with_name("clustering_scikit.py"))
        command = [str(environments.python("scikit-learn")), "-W", "ignore", script]
    else:
        command = [sys.executable, "-m", "tests.bench.clustering", "--fit"]
    count = str(threads)
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    done = subprocess.run(
        [*command, str(path), case, str(seed)],
        env=os.environ | variables, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def study(rows: int, repeats: int, threads: list[int], cases: list[str]) -> list[dict[str, Any]]:
    """Every fit: system, case, threads, seed, seconds and quality."""
    out = []
    x = customers(rows)
    with tempfile.TemporaryDirectory(prefix="barter-bench-") as folder:
        path = Path(folder) / "customers.npy"
        np.save(path, x)
        plan = [(c, t, s) for c in cases for t in threads for s in range(repeats)]
        for case, count, seed in track(plan, "fits", transient=True):
            for system in SYSTEMS:
                found = measured(path, system, case, seed, count)
                out.append({
                    "system": system, "case": case, "threads": count, "seed": seed, "rows": rows,
                    "seconds": found["seconds"], "quality": quality(x, case, found),
                })  # fmt: skip
    return out


def _key(one: dict[str, Any]) -> tuple[str, int, int]:
    return one["case"], one["threads"], one["rows"]


def table(fits: list[dict[str, Any]]) -> str:
    """Medians (and ranges) side by side; a ratio is that of the medians."""
    lines = [
        "| | threads | rows | Barter | scikit-learn | ratio | quality: Barter | scikit-learn |",
        "|---|-:|-:|-:|-:|-:|-:|-:|",
    ]
    for case, threads, rows in dict.fromkeys(map(_key, fits)):
        mine = [one for one in fits if _key(one) == (case, threads, rows)]
        ours, theirs = ([one for one in mine if one["system"] == name] for name in SYSTEMS)
        seconds = [np.array([one["seconds"] for one in each]) for each in (ours, theirs)]
        ratio = np.median(seconds[0]) / np.median(seconds[1])
        cells = [f"{np.median(one):.2f} s ({one.min():.2f} to {one.max():.2f})" for one in seconds]
        good = [float(np.median([one["quality"] for one in each])) for each in (ours, theirs)]
        digits = 0 if case == "kmeans" else 5
        cells += [f"{ratio:.2f}", *(f"{value:,.{digits}f}" for value in good)]
        lines.append(f"| {case} | {threads} | {rows:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study, write its results, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (1,000,000)")
    parser.add_argument("--repeats", type=int, default=5, help="fits of each (5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="threads of each (2)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--fit", nargs=3, metavar=("DATA", "CASE", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.fit:
        path, case, seed = asked.fit
        print(json.dumps(fit(np.load(path), case, int(seed), int(os.environ["OMP_NUM_THREADS"]))))
        return
    fits = study(asked.rows, asked.repeats, asked.threads, asked.cases)
    new = set(map(_key, fits))
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    fits = sorted([*(one for one in kept if _key(one) not in new), *fits], key=_order)
    RESULTS.write_text(json.dumps(fits, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(HEAD + table(fits) + "\n", encoding="utf-8")
    print(table(fits))


def _order(one: dict[str, Any]) -> tuple[Any, ...]:
    return CASES.index(one["case"]), one["threads"], one["rows"], one["system"], one["seed"]


if __name__ == "__main__":
    main()
