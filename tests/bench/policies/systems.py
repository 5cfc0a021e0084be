"""Who takes part: Barter's policies, the peers and the yardsticks, with their settings per task.

The peers' settings are those that did best for them on orders of the rows that are not reported
(seed 99), or the textbook's. Barter's are written as on the command line: a registered name and its
options; ``Options`` without a family hold for all tasks.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bandits import policies
from tests.bench.policies import environments
from tests.bench.policies.tasks import Task

Kind = Literal["barter", "peer", "yardstick"]
Settings = dict[str, Any]


class Contender(NamedTuple):
    """A system with its settings for one task.

    Attributes:
        name: as in the table.
        kind: whose it is.
        module: what runs it, as ``python -m``.
        library: the peer's environment; None for this one.
        settings: what :mod:`.protocol` hands on.
        cost_us: about what a row takes, for the estimate of the time left.
    """

    name: str
    kind: Kind
    module: str
    library: str | None
    settings: Settings
    cost_us: float


#: Settings that are measured besides the defaults of all registered policies that fit:
#: ``(task, family or "contextual" for all of them, "name option=value ...")``. On the wheel the
#: spread of a reward is given, the same noise of 5 (times 1000) as the yardsticks have.
BARTER: tuple[tuple[str, str], ...] = (
    ("contextual", "squarecb regressor=trees"),
    ("contextual", "fastcb regressor=trees"),
    ("mushroom", "linear_thompson start=mean"),
    ("wheel", "linear_thompson spread=5000 explore=1"),
    ("wheel", "trees_thompson spread=2500"),
    ("wheel", "neural_linear spread=5000 explore=0.2 units=64"),
)

#: Policies that read no context and are meant for conversions: for the Bernoulli arms.
ARM_LEVEL = ("thompson_beta", "thompson_gaussian", "ucb1", "epsilon_greedy")

_CLASS = "--ignore_linear s"
_GRID = "--cb_min_cost -1 --cb_max_cost 0 --ignore_linear s"


def _vw(options: str, **more: Any) -> Settings:
    return {"library": "vowpalwabbit", "options": options, **more}


def _lib(library: str, policy: str, **more: Any) -> Settings:
    return {"library": library, "policy": policy, **more}


_ONE = {"offset": 1.0}
_FIFTIETH = {"scale": 0.02}

#: family -> name -> (settings, microseconds per row).
PEERS: Mapping[str, Mapping[str, tuple[Settings, float]]] = {
    "bernoulli": {
        "MABWiser ThompsonSampling": (_lib("mabwiser", "ThompsonSampling"), 250),
        "bayesianbandits Thompson": ({"library": "bayesianbandits", "learner": "beta"}, 2900),
        "river ThompsonSampling": (_lib("river", "ThompsonSampling"), 50),
    },
    "linear": {
        "contextualbandits LinUCB": (_lib("contextualbandits", "LinUCB", alpha=1.0), 1200),
        "MABWiser LinUCB": (_lib("mabwiser", "LinUCB", alpha=1.0), 1500),
        "river LinUCBDisjoint": (_lib("river", "LinUCBDisjoint", alpha=1.0, precision=4.0), 360),
        "bayesianbandits Thompson": (
            {"library": "bayesianbandits", "learner": "normal", "precision": 4.0},
            3300,
        ),
        "VW squarecb": (_vw("--squarecb --cb_min_cost -4 --cb_max_cost 4"), 170),
    },
    "classification": {
        "VW squarecb tuned": (_vw(f"--squarecb --gamma_scale 100 -l 2 {_CLASS}", **_ONE), 150),
        "VW cover 3 tuned": (_vw(f"--cover 3 --nounif --psi 0.01 {_CLASS}", **_ONE), 200),
        "VW regcbopt": (_vw(f"--regcbopt {_CLASS}", **_ONE), 200),
        "VW bag 5 greedify": (_vw(f"--bag 5 --greedify {_CLASS}", **_ONE), 250),
        "VW ε .05 with 10 hidden units": (
            _vw(f"--epsilon 0.05 --nn 10 --inpass {_CLASS}", **_ONE),
            250,
        ),
        "contextualbandits LinUCB": (_lib("contextualbandits", "LinUCB", alpha=0.5), 2000),
        "MABWiser LinUCB": (_lib("mabwiser", "LinUCB", alpha=0.5), 2000),
        "bayesianbandits GLM Thompson in blocks of 50": (
            {"library": "bayesianbandits", "learner": "logistic", "batch": 50},
            900,
        ),
    },
    "wheel": {
        "VW squarecb on a grid": (_vw(f"--squarecb {_GRID}", grid=True, **_FIFTIETH), 90),
        "VW regcbopt on a grid": (_vw(f"--regcbopt {_GRID}", grid=True, **_FIFTIETH), 90),
        "VW bag 5 on a grid": (_vw("--bag 5 --ignore_linear s", grid=True, **_FIFTIETH), 120),
        "contextualbandits LinUCB": (_lib("contextualbandits", "LinUCB", alpha=5.0), 700),
        "MABWiser LinTS": (_lib("mabwiser", "LinTS", alpha=5.0), 900),
    },
}

#: family -> name -> settings.
YARDSTICKS: Mapping[str, Mapping[str, Settings]] = {
    "bernoulli": {
        "uniform": {"rule": "uniform"},
        "greedy": {"rule": "greedy"},
        "numpy Thompson": {"rule": "thompson"},
    },
    "linear": {
        "uniform": {"rule": "uniform"},
        "greedy": {"rule": "greedy", "intercept": False},
        "numpy LinUCB": {"rule": "ucb", "scale": 1.0, "intercept": False},
        "numpy LinTS": {"rule": "thompson", "scale": 0.5, "intercept": False},
    },
    "classification": {
        "uniform": {"rule": "uniform"},
        "greedy": {"rule": "greedy"},
        "numpy LinUCB": {"rule": "ucb", "scale": 0.5},
        "numpy LinTS": {"rule": "thompson", "scale": 0.5},
    },
    "wheel": {
        "uniform": {"rule": "uniform"},
        "greedy": {"rule": "greedy"},
        "numpy LinUCB": {"rule": "ucb", "scale": 5.0},
        "numpy LinTS": {"rule": "thompson", "scale": 5.0},
    },
}

#: About what a row of a policy of ours takes, where it is not 700 µs.
_COST_US = {
    "ucb1": 100,
    "epsilon_greedy": 100,
    "thompson_beta": 1000,
    "linear_ucb": 150,
    "trees_thompson": 1500,
}


def contenders(
    task: Task, *, added: Iterable[str] = (), files: Iterable[str] = ()
) -> list[Contender]:
    """All systems of a task: yardsticks, Barter's policies, peers.

    Args:
        task: the task.
        added: further settings of registered policies, "name option=value ...".
        files: paths of modules with a policy.
    """
    package = "tests.bench.policies"
    found = [
        Contender(name, "yardstick", f"{package}.yardsticks", None, settings, 30)
        for name, settings in YARDSTICKS.get(task.family, YARDSTICKS["classification"]).items()
    ]
    found += [_barter(line, task) for line in [*lines(task), *added]]
    found += [_plugged(path, task) for path in files]
    peers = PEERS.get(task.family, PEERS["classification"])
    found += [
        Contender(name, "peer", f"{package}.peers", settings["library"], settings, cost)
        for name, (settings, cost) in peers.items()
    ]
    return found


def lines(task: Task) -> list[str]:
    """The registered policies that fit a task at their defaults, and those of :data:`BARTER`."""
    if task.family == "bernoulli":
        return [name for name in ARM_LEVEL if name in policies.NAMES]
    plain = [spec.name for spec in policies.catalogue() if spec.contextual]
    more = [line for where, line in BARTER if where in ("contextual", task.family, task.name)]
    return list(dict.fromkeys([*plain, *more]))


def _barter(line: str, task: Task) -> Contender:
    name, *rest = line.split()
    options: dict[str, Any] = {}
    for pair in rest:
        key, _, value = pair.partition("=")
        try:
            options[key] = float(value)
        except ValueError:
            options[key] = value
    settings = {"policy": name, "options": options, **_schedule(task)}
    module = "tests.bench.policies.barter"
    return Contender(f"Barter {line}", "barter", module, None, settings, _COST_US.get(name, 700))


def _plugged(path: str, task: Task) -> Contender:
    settings = {"file": str(Path(path).resolve()), "options": {}, **_schedule(task)}
    module = "tests.bench.policies.barter"
    return Contender(f"file {Path(path).name}", "barter", module, None, settings, 700)


def _schedule(task: Task) -> Settings:
    return {"unit": task.unit} | ({"most": 1} if task.family == "bernoulli" else {})


def version(contender: Contender) -> str:
    """What was installed for a system."""
    return ", ".join(environments.REQUIREMENTS.get(contender.library or "", ()))
