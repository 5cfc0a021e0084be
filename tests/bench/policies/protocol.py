"""What the command and the processes that it starts say to each other.

The command writes one ``.npz`` per seed (``contexts`` (N, D), ``reward`` (N, A)) and a line of JSON
to the process's standard input: ``{"settings": {...}, "problems": [[seed, path], ...]}``. The
process answers with one line of JSON per seed: ``{"seed", "arms", "seconds"}``.

This module is also read by the peers' own environments: numpy is all it may import.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


class System(Protocol):
    """Something that chooses arms and learns from what they earned.

    Attributes:
        batch: rows of the next call; may change from call to call.
    """

    batch: int

    def choose(self, contexts: Floats) -> Any:
        """Arms (b,) for contexts (b, D)."""

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        """Learn from the rows just chosen: arms (b,) and what they earned (b,)."""


#: ``(arms, features, seed, settings) -> System``.
Maker: TypeAlias = Callable[[int, int, int, dict[str, Any]], System]


def play(system: System, contexts: Floats, reward: Floats) -> tuple[Ints, float]:
    """Go through the rows in order; the arms chosen (N,), and seconds.

    A system that has ``whole(contexts, reward)`` goes through them by itself.
    """
    if whole := getattr(system, "whole", None):
        itself: tuple[Ints, float] = whole(contexts, reward)
        return itself
    rows = len(reward)
    arms = np.zeros(rows, np.int64)
    started = time.perf_counter()
    first = 0
    while first < rows:
        part = slice(first, min(rows, first + system.batch))
        first = part.stop
        seen = contexts[part]
        arms[part] = np.asarray(system.choose(seen)).reshape(-1)
        system.learn(seen, arms[part], reward[part][np.arange(len(seen)), arms[part]])
    return arms, time.perf_counter() - started


def serve(make: Maker) -> None:
    """Read what to do from standard input, do it, and answer seed by seed."""
    asked = json.loads(sys.stdin.readline())
    for seed, path in asked["problems"]:
        with np.load(path) as problem:
            contexts, reward = problem["contexts"], problem["reward"]
        system = make(reward.shape[1], contexts.shape[1], seed, asked["settings"])
        arms, seconds = play(system, contexts, reward)
        print(json.dumps({"seed": seed, "arms": arms.tolist(), "seconds": seconds}), flush=True)
