"""What a policy says about itself (for consoles) and the checks of its options."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

OptionValue = float | str | Sequence[float] | Sequence[Sequence[float]] | NDArray[Any] | None


class Option(NamedTuple):
    """One option of a policy.

    Attributes:
        name: keyword of the factory.
        kind: "number", "choice" (one of ``choices``), "per_arm" (A numbers) or "per_segment_arm"
            (S lists of A numbers).
        default: what is used when the option is left out; None means what ``help`` says. The
            place in ``choices`` for a choice.
        minimum: least value allowed (of each number).
        maximum: greatest value allowed.
        open: whether the minimum itself is excluded.
        help: one plain sentence.
        choices: the words that a choice is made from.
    """

    name: str
    kind: str
    default: float | None
    minimum: float
    maximum: float
    open: bool
    help: str
    choices: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; a choice's default is its word, an infinite bound is null."""
        plain = {name: _finite(value) for name, value in self._asdict().items()}
        if self.kind == "choice" and self.default is not None:
            plain["default"] = self.choices[int(self.default)]
        return plain | {"choices": list(self.choices)}


class PolicySpec(NamedTuple):
    """A policy's name, explanation and options.

    Attributes:
        name: the registered name.
        title: what people call it.
        summary: one plain sentence.
        objectives: campaign objectives that it is meant for.
        randomised: whether its simplex is not one-hot by itself (a floor is advised otherwise).
        options: in the order of the factory's keywords.
        contextual: whether it looks at the features of a context; then its factory takes the
            keyword ``features``.
        pooled: whether segments learn from each other.
        hosted: whether ``believe`` runs in numpy on either backend, and so cannot be traced.
    """

    name: str
    title: str
    summary: str
    objectives: tuple[str, ...]
    randomised: bool
    options: tuple[Option, ...]
    contextual: bool = False
    pooled: bool = False
    hosted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for an API or a form."""
        entries = [option.as_dict() for option in self.options]
        plain = self._asdict() | {"objectives": list(self.objectives), "options": entries}
        del plain["hosted"]  # how it is computed is nobody's choice
        return plain


def checked(
    spec: PolicySpec, options: Mapping[str, OptionValue], *, segments: int, arms: int
) -> dict[str, Any]:
    """The options with defaults filled in, numbers as floats and tables as float64 arrays.

    Raises:
        ValueError: an option is unknown, not finite, out of bounds or of the wrong shape; the
            message begins with the option's name.
    """
    known = {option.name: option for option in spec.options}
    for name in options:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"{name}: {spec.name} has no such option (it has: {allowed})")
    return {
        name: _checked_one(option, options.get(name, option.default), segments, arms)
        for name, option in known.items()
    }


def _checked_one(option: Option, value: OptionValue, segments: int, arms: int) -> Any:
    if value is None:
        if option.default is not None:
            raise ValueError(f"{option.name}: must not be null")
        return None
    if option.kind == "choice":
        return _checked_choice(option, value)
    shapes = {"number": (), "per_arm": (arms,), "per_segment_arm": (segments, arms)}
    shape = shapes[option.kind]
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{option.name}: must be {_wanted(option, segments, arms)}") from None
    if isinstance(value, bool | str) or array.shape != shape:
        raise ValueError(f"{option.name}: must be {_wanted(option, segments, arms)}")
    low = array <= option.minimum if option.open else array < option.minimum
    if not bool(np.all(np.isfinite(array))) or bool(np.any(low | (array > option.maximum))):
        raise ValueError(f"{option.name}: must be {_bounds(option)}")
    return float(array) if option.kind == "number" else array


def _checked_choice(option: Option, value: OptionValue) -> str:
    if isinstance(value, float) and value == option.default:
        return option.choices[int(value)]
    if not isinstance(value, str) or value not in option.choices:
        raise ValueError(f"{option.name}: must be one of {', '.join(option.choices)}")
    return value


def _wanted(option: Option, segments: int, arms: int) -> str:
    return {
        "number": "a number",
        "per_arm": f"a list of {arms} numbers, one per arm",
        "per_segment_arm": f"{segments} lists (one per segment) of {arms} numbers (one per arm)",
    }[option.kind]


def _bounds(option: Option) -> str:
    above = "greater than" if option.open else "at least"
    upper = "" if math.isinf(option.maximum) else f" and at most {option.maximum:g}"
    if math.isinf(option.minimum):
        return "a finite number" + upper
    return f"a finite number {above} {option.minimum:g}{upper}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value
