"""Barter's policies behind the two calls of :mod:`.protocol`, as the service would use them.

Features are quantised once, rewards are integers (times the task's ``unit``), the simplex comes out
of ``probabilities``, and the one sampler draws from it with a keyed uniform number. The policy
learns after every row at first and later in blocks of ``share`` of the rows so far, ``most`` at
most. Where a policy retrains, that is done on all rows so far, at 20 rows and whenever they have
grown by 15 % (10 rows at least, 1000 at most) since, in a batch filled up to a power of two.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bandits import features, online, policies, sampling
from bandits.types import Batch, Contexts, Policy
from tests.bench.policies.protocol import Floats, Ints, System, serve


def module_of(path: Path) -> ModuleType:
    """The module in a file: what a user plugs in.

    Raises:
        ValueError: it lacks ``SPEC`` or ``policy``.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("SPEC", "policy"):
        if not hasattr(module, name):
            raise ValueError(f"{path}: has no {name}; bandits/README.md has the page on a policy")
    return module


def made(settings: dict[str, Any], *, arms: int, width: int, backend: str) -> Policy:
    """The policy of the settings: a registered one, or out of a file."""
    options = settings.get("options", {})
    if path := settings.get("file"):
        module = module_of(Path(path))
        size = {"features": width} if module.SPEC.contextual else {}
        policy: Policy = module.policy(arms=arms, segments=1, backend=backend, **size, **options)
        return policy
    return policies.make(
        settings["policy"], arms=arms, segments=1, features=width, backend=backend, **options
    )


class Barter:
    """One policy, its state and its belief."""

    def __init__(self, arms: int, width: int, seed: int, settings: dict[str, Any]) -> None:
        self.settings, self.arms, self.width, self.seed = settings, arms, width, seed
        self.policy = made(settings, arms=arms, width=width, backend="numpy")
        self.trainer: Policy | None = None
        self.unit = settings.get("unit", 1)
        self.most, self.share = settings.get("most", 50), settings.get("share", 0.02)
        self.rows, self.batch, self.due = 0, 1, 20
        self.state = self.policy.init()
        self.belief = self.policy.believe(self.state)
        self.log: list[Batch] = []

    def choose(self, contexts: Floats) -> Any:
        rows = len(contexts)
        self.contexts = Contexts(np.zeros(rows, np.int32), features.quantise(contexts))
        mask = np.ones((rows, self.arms), bool)
        self.simplex = np.asarray(self.policy.probabilities(self.belief, self.contexts, mask))
        keys = (str(row) for row in range(self.rows, self.rows + rows))
        return sampling.draws(self.simplex, sampling.uniforms(f"seed {self.seed}", keys))

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        whole = np.rint(reward * self.unit).astype(np.int64)
        batch = Batch(
            self.contexts,
            arms.astype(np.int32),
            self.simplex,
            (whole > 0).astype(np.int64),
            whole,
            np.ones(len(arms), np.int64),
        )
        self.rows += len(arms)
        self.state = self.policy.update(self.state, batch)
        if self.policy.retrain is not None:
            self.log.append(batch)
            if self.rows >= self.due:
                self.retrain()
        self.belief = self.policy.believe(self.state)
        self.batch = int(np.clip(self.rows * self.share, 1, self.most))

    def retrain(self) -> None:
        """Fit what is not counted to all rows so far, on the backend that trains."""
        if self.trainer is None:
            self.trainer = made(self.settings, arms=self.arms, width=self.width, backend="jax")
        assert self.trainer.retrain is not None
        self.due = self.rows + int(np.clip(0.15 * self.rows, 10, 1000))
        found = self.trainer.retrain(self.state, filled(joined(self.log)), self.seed)
        self.state = type(found)(*(np.asarray(part) for part in found))


class Online:
    """LinUCB without the service's snapshots (:mod:`bandits.online`), ``online`` rows at a time."""

    def __init__(self, arms: int, width: int, settings: dict[str, Any]) -> None:
        options = settings.get("options", {})
        self.bandit = online.OnlineLinUCB(arms=arms, features=width, **options)
        self.unit, self.batch = settings.get("unit", 1), settings["online"]

    def choose(self, contexts: Floats) -> Any:
        if self.batch == 1:
            return self.bandit.choose(contexts[0])
        return self.bandit.choose_batch(contexts)

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        if self.batch == 1:
            self.bandit.learn(contexts[0], int(arms[0]), round(float(reward[0]) * self.unit))
        else:
            whole = np.rint(reward * self.unit).astype(np.int64)
            self.bandit.learn_batch(contexts, arms, whole)


def joined(log: list[Batch]) -> Batch:
    """All batches as one."""
    contexts = Contexts(
        *(np.concatenate([getattr(b.contexts, f) for b in log]) for f in Contexts._fields)
    )
    names = [name for name in Batch._fields[1:] if getattr(log[0], name) is not None]
    rest = {name: np.concatenate([getattr(one, name) for one in log]) for name in names}
    return Batch(contexts, **rest)


def filled(batch: Batch) -> Batch:
    """The batch with rows of sign 0 up to a power of two, so that few sizes are compiled."""
    rows = len(batch.arm)
    place = np.arange(1 << max(0, rows - 1).bit_length()) % rows
    contexts = Contexts(*(field[place] for field in batch.contexts))
    wide = Batch(contexts, *(field[place] for field in batch[1:-1]))
    return wide._replace(sign=np.where(np.arange(len(place)) < rows, wide.sign, 0))


def make(arms: int, width: int, seed: int, settings: dict[str, Any]) -> System:
    """The policy of the settings, at work."""
    if settings.get("online"):
        return Online(arms, width, settings)
    return Barter(arms, width, seed, settings)


if __name__ == "__main__":
    serve(make)
