"""The registered policies, by name.

>>> sorted(NAMES)[:3]
['epsilon_greedy', 'fastcb', 'fixed_split']
>>> make("thompson_beta", arms=3, segments=2).name
'thompson_beta'
>>> make("thompson_beta", arms=3, segments=2, alpha=-1.0)
Traceback (most recent call last):
ValueError: alpha: must be a finite number at least 0.5 and at most 1e+06
"""

import functools
from types import ModuleType

from bandits import forgetting
from bandits.policies import (
    epsilon_greedy,
    fastcb,
    fixed_split,
    gradient,
    linear_thompson,
    linear_ucb,
    logistic_thompson,
    neural_ensemble,
    neural_epinet,
    neural_linear,
    squarecb,
    thompson_beta,
    thompson_gaussian,
    thompson_hierarchical,
    thompson_profit,
    time_options,
    trees_thompson,
    ucb1,
)
from bandits.policies.spec import Option, OptionValue, PolicySpec
from bandits.types import Policy

__all__ = ["NAMES", "Option", "OptionValue", "PolicySpec", "catalogue", "describe", "make"]

_MODULES: dict[str, ModuleType] = {
    module.SPEC.name: module
    for module in (
        fixed_split,
        epsilon_greedy,
        ucb1,
        gradient,
        thompson_beta,
        thompson_gaussian,
        thompson_profit,
        thompson_hierarchical,
        linear_thompson,
        linear_ucb,
        logistic_thompson,
        squarecb,
        fastcb,
        trees_thompson,
        neural_linear,
        neural_ensemble,
        neural_epinet,
    )
}

#: Names that :func:`make` knows, in the order a console lists them.
NAMES: tuple[str, ...] = tuple(_MODULES)


def make(
    name: str,
    *,
    arms: int,
    segments: int,
    features: int = 0,
    backend: str = "numpy",
    **options: OptionValue,
) -> Policy:
    """The policy called ``name`` for A = ``arms``, S = ``segments`` and D = ``features``.

    Args:
        name: one of :data:`NAMES`.
        arms: number of arms, at least 1.
        segments: number of segments, at least 1.
        features: number of features of a context; policies that are not contextual ignore them.
        backend: "numpy" (serving) or "jax" (learner, bulk).
        options: the policy's own and, where its state is sums, those of forgetting
            (``half_life``, ``window``, ``buckets``, ``kept``); see :func:`describe`.

    Raises:
        ValueError: the name or the backend is unknown, a size is below 1, or an option is wrong;
            the message begins with the name of what is wrong.
    """
    if name not in _MODULES:
        raise ValueError(f"name: no policy {name!r} (there are: {', '.join(NAMES)})")
    for size, what in ((arms, "arms"), (segments, "segments")):
        if size < 1:
            raise ValueError(f"{what}: must be at least 1")
    if backend not in ("numpy", "jax"):
        raise ValueError(f"backend: must be 'numpy' or 'jax', not {backend!r}")
    if features < 0:
        raise ValueError("features: must be at least 0")
    module = _MODULES[name]
    width = {"features": features} if module.SPEC.contextual else {}
    own = {key: value for key, value in options.items() if key not in time_options.NAMES}
    policy: Policy = module.policy(arms=arms, segments=segments, backend=backend, **width, **own)
    timed = {key: value for key, value in options.items() if key in time_options.NAMES}
    return time_options.applied(policy, timed, arms=arms, segments=segments, backend=backend)


@functools.cache
def describe(name: str) -> PolicySpec:
    """What the policy ``name`` says of itself, options with defaults and bounds included."""
    if name not in _MODULES:
        raise ValueError(f"name: no policy {name!r} (there are: {', '.join(NAMES)})")
    spec: PolicySpec = _MODULES[name].SPEC
    counting = forgetting.fits(_MODULES[name].policy(arms=2, segments=1))
    return spec._replace(options=spec.options + time_options.OPTIONS) if counting else spec


def catalogue() -> tuple[PolicySpec, ...]:
    """Every registered policy's description, in the order of :data:`NAMES`."""
    return tuple(describe(name) for name in NAMES)
