"""The peers, each behind two calls; runs in a peer's own environment (:mod:`.environments`).

Imports stand inside the classes, so that an environment needs one peer only. Rows come one at a
time unless the settings say ``batch``. Where a peer has no opinion before its first row, that row's
arm is the first one (MABWiser) or drawn (contextualbandits).
"""

import tempfile
import time
from importlib import import_module
from typing import Any

import numpy as np

from tests.bench.policies.protocol import Floats, Ints, System, serve


def with_intercept(contexts: Floats) -> Floats:
    """A column of ones after the features."""
    return np.hstack([contexts, np.ones((len(contexts), 1))])


class VowpalWabbit:
    """Contextual bandits with action-dependent features, in text, through the Python API.

    A cost is ``(offset - reward) · scale``. ``grid`` replaces the two features of the wheel by
    indicators of ten by ten cells.
    """

    batch = 1

    def __init__(self, arms: int, features: int, seed: int, settings: dict[str, Any]) -> None:
        library = import_module("vowpalwabbit")
        options = f"--cb_explore_adf {settings['options']} -q sa --quiet --random_seed {seed + 1}"
        self.workspace = library.Workspace(options)
        self.offset, self.scale = settings.get("offset", 0.0), settings.get("scale", 1.0)
        self.grid, self.rng = settings.get("grid", False), np.random.default_rng(seed)
        self.actions = [f"|a a{arm}" for arm in range(arms)]
        self.unlabelled = "\n".join(self.actions)
        self.shared, self.probability = "", 1.0

    def text(self, x: Floats) -> str:
        """The features as one shared line."""
        if self.grid:
            across, up = np.minimum(((x + 1) / 2 * 10).astype(int), 9)
            return f"shared |s {across * 10 + up}:1"
        used = np.flatnonzero(x)
        pairs = zip(used.tolist(), x[used].tolist(), strict=True)
        return "shared |s " + " ".join(f"{place}:{value:.5g}" for place, value in pairs)

    def choose(self, contexts: Floats) -> int:
        self.shared = self.text(contexts[0])
        simplex = self.workspace.predict(f"{self.shared}\n{self.unlabelled}")
        u, arm = self.rng.random() * sum(simplex), 0
        for arm, probability in enumerate(simplex):  # noqa: B007
            u -= probability
            if u < 0:
                break
        self.probability = simplex[arm]
        return arm

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        arm, cost = int(arms[0]), (self.offset - float(reward[0])) * self.scale
        lines = list(self.actions)
        lines[arm] = f"{arm}:{cost:.6g}:{self.probability:.6g} {lines[arm]}"
        self.workspace.learn(self.shared + "\n" + "\n".join(lines))


class NativeVowpalWabbit:
    """Vowpal Wabbit reading the whole stream from a file, as its command-line program does.

    With ``cbify`` in the options the rows are classes, and it chooses arms itself; else they are
    a log of uniform choices, of which it predicts and learns every row. It does not say which arms
    it chose: this is for timing.
    """

    batch = 1

    def __init__(self, arms: int, features: int, seed: int, settings: dict[str, Any]) -> None:
        self.library, self.arms = import_module("vowpalwabbit"), arms
        self.options = f"{settings['options']} --quiet --random_seed {seed + 1}".split()
        self.classes, self.rng = "--cbify" in settings["options"], np.random.default_rng(seed)

    def choose(self, contexts: Floats) -> Any:
        raise NotImplementedError("it goes through the rows by itself")

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        raise NotImplementedError("it goes through the rows by itself")

    def text(self, x: Floats, earned: Floats) -> str:
        """One row of the file."""
        used = np.flatnonzero(x)
        pairs = zip(used.tolist(), x[used].tolist(), strict=True)
        seen = " ".join(f"{place}:{value:.5g}" for place, value in pairs)
        if self.classes:
            return f"{int(earned.argmax()) + 1} |s {seen}\n"
        lines = [f"|a a{arm}" for arm in range(self.arms)]
        arm = int(self.rng.integers(self.arms))
        lines[arm] = f"{arm}:{-earned[arm]:.6g}:{1 / self.arms:.6g} {lines[arm]}"
        return "\n".join([f"shared |s {seen}", *lines, "\n"])

    def whole(self, contexts: Floats, reward: Floats) -> tuple[Ints, float]:
        """Write the file, then time the program on it."""
        with tempfile.NamedTemporaryFile("w", suffix=".vw") as file:
            for x, earned in zip(contexts, reward, strict=True):
                file.write(self.text(x, earned))
            file.flush()
            started = time.perf_counter()
            workspace = self.library.Workspace(arg_list=[*self.options, "-d", file.name])
            seconds = time.perf_counter() - started
            read = int(workspace.get_weighted_examples())
            workspace.finish()
        if read < len(reward):
            raise RuntimeError(f"it read {read} of {len(reward)} rows")
        return np.zeros(len(reward), np.int64), seconds


class MABWiser:
    """``LinUCB``, ``LinTS`` or ``ThompsonSampling``."""

    def __init__(self, arms: int, features: int, seed: int, settings: dict[str, Any]) -> None:
        library = import_module("mabwiser.mab")
        self.batch = settings.get("batch", 1)
        self.contextual = settings["policy"] != "ThompsonSampling"
        options = {"alpha": settings["alpha"], "l2_lambda": 1.0} if self.contextual else {}
        policy = getattr(library.LearningPolicy, settings["policy"])(**options)
        self.bandit = library.MAB(
            arms=list(range(arms)), learning_policy=policy, seed=seed + 1, n_jobs=1
        )
        self.fitted, self.seen = False, ([], [])  # type: tuple[bool, tuple[list[int], list[float]]]
        self.arms = arms

    def choose(self, contexts: Floats) -> Any:
        if not self.fitted:
            first = len(self.seen[0])
            return (first + np.arange(len(contexts))) % self.arms
        if not self.contextual:
            return self.bandit.predict()
        return self.bandit.predict(with_intercept(contexts))

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        if self.contextual:
            fit = self.bandit.partial_fit if self.fitted else self.bandit.fit
            fit(arms, reward, with_intercept(contexts))
            self.fitted = True
        elif self.fitted:
            self.bandit.partial_fit(arms, reward)
        else:  # every arm once
            self.seen[0].extend(arms.tolist())
            self.seen[1].extend(reward.tolist())
            if len(self.seen[0]) >= self.arms:
                self.bandit.fit(*self.seen)
                self.fitted = True


class ContextualBandits:
    """``LinUCB`` or ``LinTS`` of contextualbandits."""

    def __init__(self, arms: int, features: int, seed: int, settings: dict[str, Any]) -> None:
        options = dict(settings)
        self.batch = options.pop("batch", 1)
        online = import_module("contextualbandits.online")
        policy = getattr(online, options.pop("policy"))
        self.bandit = policy(arms, random_state=seed + 1, beta_prior=None, **options)
        self.arms, self.rng, self.fitted = arms, np.random.default_rng(seed), False

    def choose(self, contexts: Floats) -> Any:
        if not self.fitted:
            return self.rng.integers(0, self.arms, len(contexts))
        return self.bandit.predict(np.ascontiguousarray(contexts))

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        self.bandit.partial_fit(np.ascontiguousarray(contexts), arms, reward)
        self.fitted = True


class BayesianBandits:
    """Thompson sampling with a Gaussian, a logistic or (without contexts) a Beta posterior."""

    def __init__(self, arms: int, features: int, seed: int, settings: dict[str, Any]) -> None:
        library = import_module("bayesianbandits")
        self.batch, self.contextual = settings.get("batch", 1), features > 0
        learner, noise = settings["learner"], settings.get("precision", 1.0)

        def fresh() -> Any:
            if learner == "normal":
                return library.NormalRegressor(alpha=1.0, beta=noise)
            if learner == "logistic":
                return library.BayesianGLM(alpha=1.0, link="logit")
            return library.DirichletClassifier({0: 1.0, 1: 1.0})

        options = {} if self.contextual else {"reward_function": lambda p: p[..., 1]}
        agent = library.ContextualAgent if self.contextual else library.Agent
        self.agent = agent(
            [library.Arm(arm, learner=fresh(), **options) for arm in range(arms)],
            library.ThompsonSampling(),
            random_seed=seed + 1,
        )

    def choose(self, contexts: Floats) -> Any:
        return self.agent.pull(with_intercept(contexts)) if self.contextual else self.agent.pull()

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        for arm in np.unique(arms):
            rows = arms == arm
            chosen = self.agent.select_for_update(int(arm))
            if self.contextual:
                chosen.update(with_intercept(contexts[rows]), reward[rows])
            else:
                chosen.update(reward[rows])


class River:
    """``ThompsonSampling`` with a Beta, or ``LinUCBDisjoint``."""

    batch = 1

    def __init__(self, arms: int, features: int, seed: int, settings: dict[str, Any]) -> None:
        bandit, proba = import_module("river.bandit"), import_module("river.proba")
        self.arms, self.contextual = list(range(arms)), features > 0
        if self.contextual:
            self.bandit = bandit.LinUCBDisjoint(
                alpha=settings["alpha"], beta=settings["precision"], seed=seed
            )
        else:
            self.bandit = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=seed)
        self.seen: dict[int, float] = {}

    def choose(self, contexts: Floats) -> int:
        if not self.contextual:
            return int(self.bandit.pull(self.arms))
        self.seen = dict(enumerate(np.append(contexts[0], 1.0).tolist()))
        return int(self.bandit.pull(self.arms, context=self.seen))

    def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
        if self.contextual:
            self.bandit.update(int(arms[0]), self.seen, float(reward[0]))
        else:
            self.bandit.update(int(arms[0]), float(reward[0]))


LIBRARIES: dict[str, Any] = {
    "vowpalwabbit": VowpalWabbit,
    "native vowpalwabbit": NativeVowpalWabbit,
    "mabwiser": MABWiser,
    "contextualbandits": ContextualBandits,
    "bayesianbandits": BayesianBandits,
    "river": River,
}


def make(arms: int, features: int, seed: int, settings: dict[str, Any]) -> System:
    """The peer that the settings name."""
    options = dict(settings)
    system: System = LIBRARIES[options.pop("library")](arms, features, seed, options)
    return system


if __name__ == "__main__":
    serve(make)
