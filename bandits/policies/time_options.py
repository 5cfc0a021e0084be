"""Forgetting as options that every policy has whose state is sums (:mod:`bandits.forgetting`)."""

import math
from typing import Any

from bandits import forgetting
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.types import Policy

_MOST = 4096.0

OPTIONS = (
    Option(
        "half_life", "number", None, 0.0, _MOST / forgetting.HALF_LIVES - 1, True,
        "Time buckets after which what was learnt counts half; it does not fade when left out.",
    ),
    Option(
        "window", "number", None, 1.0, _MOST, False,
        "Newest time buckets that count; all that are stored when left out.",
    ),
    Option(
        "buckets", "number", None, 1.0, _MOST, False,
        "Time buckets that are stored, a whole number; what the other options need if left out.",
    ),
    Option(
        "kept", "number", None, 0.0, 1.0, False,
        "Weight of what was learnt before a reset; 0 when left out.",
    ),
)  # fmt: skip

NAMES = frozenset(option.name for option in OPTIONS)


def applied(
    base: Policy, options: dict[str, OptionValue], *, arms: int, segments: int, backend: str
) -> Policy:
    """``base`` with these options, or ``base`` itself without any.

    Raises:
        ValueError: an option is wrong, or the base does not learn by counting alone.
    """
    if not options:
        return base
    if not forgetting.fits(base):
        raise ValueError(f"{next(iter(options))}: {base.name} does not learn by counting alone")
    spec = PolicySpec(base.name, "", "", (), True, OPTIONS)
    chosen = checked(spec, options, segments=segments, arms=arms)
    window, half_life = _whole("window", chosen), chosen["half_life"]
    buckets = _whole("buckets", chosen) or window
    if buckets is None and half_life is not None:
        buckets = math.ceil(forgetting.HALF_LIVES * half_life) + 1
    if buckets is None:
        raise ValueError("kept: needs half_life, window or buckets")
    if window is not None and window > buckets:
        raise ValueError("window: must not exceed buckets")
    return forgetting.wrap(
        base,
        buckets=buckets,
        half_life=half_life,
        window=window,
        kept=chosen["kept"] or 0.0,
        backend=backend,
    )


def _whole(name: str, chosen: dict[str, Any]) -> int | None:
    value = chosen[name]
    if value is None:
        return None
    if value != int(value):
        raise ValueError(f"{name}: must be a whole number")
    return int(value)
