"""The options that the policies over linear arms share, and the regressor that they choose."""

from typing import Any

from bandits.backend import Backend
from bandits.policies.spec import Option
from bandits.regressors import linear, linear_diagonal, linear_hybrid, linear_shared
from bandits.regressors.regressor import Regressor

OPTIONS = (
    Option(
        "precision", "number", None, 0.0, 1e9, True,
        "How strongly coefficients are drawn to 0; left out, the evidence chooses (10 if shared).",
    ),
    Option(
        "spread", "number", None, 0.0, 1e9, True,
        "Standard deviation of a reward given the context, in its units; learnt when left out.",
    ),
    Option(
        "start", "choice", 0.0, 0.0, 1.0, False,
        "What an arm without decisions is taken to earn: nothing, or as much as all arms do.",
        ("nothing", "mean"),
    ),
    Option(
        "sharing", "choice", 0.0, 0.0, 1.0, False,
        "Whether each arm has coefficients of its own, all arms one set that bends with depth, or"
        " that set and departures from it of their own.",
        ("disjoint", "shared", "hybrid"),
    ),
    Option(
        "depth", "per_arm", None, -1e6, 1e6, False,
        "Each arm's depth of discount or another number to order arms by; arms that share need it.",
    ),
    Option(
        "covariance", "choice", 0.0, 0.0, 1.0, False,
        "Whether features are learnt together, or, for thousands of them, each as if independent.",
        ("full", "diagonal"),
    ),
)  # fmt: skip


def regressor(
    chosen: dict[str, Any], *, arms: int, segments: int, features: int, space: Backend
) -> Regressor:
    """The regressor that checked options choose; names that are not among ours are passed over.

    Raises:
        ValueError: arms are to share, but have no depth, or a diagonal covariance.
    """
    sizes: dict[str, Any] = {"segments": segments, "features": features, "space": space}
    model = {name: chosen[name] for name in ("precision", "spread", "start")}
    diagonal = chosen["covariance"] == "diagonal"
    if chosen["sharing"] == "disjoint":
        kind = linear_diagonal.regressor if diagonal else linear.regressor
        return kind(arms=arms, **sizes, **model)
    if diagonal:
        raise ValueError("covariance: arms that share have a full one")
    if chosen["depth"] is None:
        raise ValueError("sharing: arms that share need their depth")
    traits = linear_shared.powers(chosen["depth"])
    if chosen["sharing"] == "hybrid":
        return linear_hybrid.regressor(arm_features=traits, depth=chosen["depth"], **sizes, **model)
    if model["precision"] is None:
        del model["precision"]
    return linear_shared.regressor(arm_features=traits, **sizes, **model)
