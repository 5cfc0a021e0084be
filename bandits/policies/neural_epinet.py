"""An epinet: one network with a small second one for its uncertainty.

The draws of the small network (:mod:`bandits.regressors.epinet`) are frozen, and the simplex is the
share of them in which an arm is best, exact by construction. All is learnt when it is retrained,
and only then. An arm that was not among the rows of the last retraining has an equal share of the
eligible arms, 1/K, until the next.

Source: Osband et al., NeurIPS 2023 (epistemic neural networks).

>>> import numpy as np
>>> from bandits.types import Contexts
>>> one = policy(arms=4, segments=1)
>>> here = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> one.probabilities(one.believe(one.init()), here, np.array([[True, True, False, False]]))
array([[0.5, 0.5, 0. , 0. ]])
"""

from bandits import backend as backends
from bandits import explore
from bandits.policies import contextual
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.regressors import ensemble, epinet, neural_linear
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Belief, Policy

SPEC = PolicySpec(
    name="neural_epinet",
    title="Thompson sampling (epinet)",
    summary="One network learns rewards, a second one how unsure they are.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option(
            "indices", "number", float(epinet.INDICES), 2.0, 10_000.0, False,
            "How many draws are kept, a whole number; shares come in steps of one of them.",
        ),
        Option(
            "units", "number", float(neural_linear.UNITS), 1.0, 1024.0, False,
            "Units of each of the network's two layers, a whole number.",
        ),
        Option(
            "prior", "number", ensemble.PRIOR, 0.0, 100.0, False,
            "How far draws differ before they learn, in standard deviations of the rewards.",
        ),
        Option(
            "spread", "number", None, 0.0, 1e9, True,
            "Standard deviation of a reward, in its units; the residuals' own when left out.",
        ),
    ),
    contextual=True,
    pooled=True,
)  # fmt: skip


def policy(
    *, arms: int, segments: int, features: int = 0, backend: str = "numpy", **options: OptionValue
) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)
    whole = {name: round(chosen.pop(name)) for name in ("indices", "units")}
    space = backends.named(backend)
    regressor = epinet.regressor(
        arms=arms, segments=segments, features=features, space=space, **whole, **chosen
    )

    def rule(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        known = space.xp.asarray(belief.number) >= 0
        return explore.frozen(prediction.draws, mask, known=known)

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space
    )
