"""Fits one peer and writes its lists; run by the interpreter of the peer's own environment.

    python peer.py FOLDER

reads ``job.json`` (library, options, threads, iterations, seed, count) and ``past.npz`` (user,
item, users, items, whom) in FOLDER, and writes ``lists.npy`` (V, count) there, and
``seconds.json``: wall and processor seconds of every iteration. It imports nothing of ours.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

#: Customers whose scores are computed at once.
AT_ONCE = 1000


class Clock:
    """Wall and processor seconds between calls."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self._last = time.perf_counter(), time.process_time()

    def __call__(self, *_: Any) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now


def implicit(job: dict[str, Any], past: Any, whom: Any) -> tuple[Any, Clock]:
    """Alternating least squares by conjugate gradients."""
    from implicit.als import (  # type: ignore[import-not-found]
        AlternatingLeastSquares,
    )

    model = AlternatingLeastSquares(
        **job["options"], iterations=job["iterations"], num_threads=job["threads"],
        random_state=job["seed"], use_cg=True,
    )  # fmt: skip
    clock = Clock()
    model.fit(past, show_progress=False, callback=clock)
    lists, _ = model.recommend(whom, past[whom], N=job["count"], filter_already_liked_items=True)
    return lists, clock


def lightfm(job: dict[str, Any], past: Any, whom: Any) -> tuple[Any, Clock]:
    """WARP; lists by the library's own vectors and biases."""
    from lightfm import LightFM  # type: ignore[import-not-found]

    model = LightFM(**job["options"], loss="warp", random_state=job["seed"])
    triples, clock = past.tocoo(), Clock()
    for _ in range(job["iterations"]):
        model.fit_partial(triples, epochs=1, num_threads=job["threads"])
        clock()
    _, users = model.get_user_representations()
    bias, items = model.get_item_representations()
    lists = []
    for first in range(0, len(whom), AT_ONCE):
        some = whom[first : first + AT_ONCE]
        scores = users[some] @ items.T + bias
        scores[past[some].nonzero()] = -np.inf
        best = np.argpartition(-scores, job["count"], axis=1)[:, : job["count"]]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        lists.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(lists), clock


def main() -> None:
    """Does the job in the folder that is named on the command line."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "past.npz") as given:
        shape = int(given["users"]), int(given["items"])
        ones = np.ones(len(given["user"]), np.float32)
        past = sparse.csr_matrix((ones, (given["user"], given["item"])), shape=shape)
        whom = given["whom"]
    lists, clock = {"implicit": implicit, "lightfm": lightfm}[job["library"]](job, past, whom)
    np.save(folder / "lists.npy", np.asarray(lists, np.int64))
    (folder / "seconds.json").write_text(json.dumps(clock.seconds))


if __name__ == "__main__":
    main()
