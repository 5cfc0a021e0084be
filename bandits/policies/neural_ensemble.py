"""An ensemble of networks with random priors: for curved rewards that no last layer explains.

Every member (:mod:`bandits.regressors.ensemble`) is a network with a prior of its own that training
leaves alone; the simplex is the share of the members in which an arm is best, exact by
construction. Members learn when they are retrained, and only then. An arm that was not among the
rows of the last retraining has an equal share of the eligible arms, 1/K, until the next.

Source: Osband, Aslanides and Cassirer, NeurIPS 2018; Lu and Van Roy, NeurIPS 2017.

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
from bandits.regressors import ensemble, neural_linear
from bandits.regressors.regressor import Prediction
from bandits.types import Array, Belief, Policy

SPEC = PolicySpec(
    name="neural_ensemble",
    title="Thompson sampling (neural ensemble)",
    summary="Several networks learn side by side, and customers are shared out as they disagree.",
    objectives=("conversion", "revenue", "profit"),
    randomised=True,
    options=(
        Option(
            "members", "number", float(ensemble.MEMBERS), 2.0, 100.0, False,
            "How many networks there are, a whole number; shares come in steps of one of them.",
        ),
        Option(
            "units", "number", float(neural_linear.UNITS), 1.0, 1024.0, False,
            "Units of each of a network's two layers, a whole number.",
        ),
        Option(
            "prior", "number", ensemble.PRIOR, 0.0, 100.0, False,
            "How far networks differ before they learn, in standard deviations of the rewards.",
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
    whole = {name: round(chosen.pop(name)) for name in ("members", "units")}
    space = backends.named(backend)
    regressor = ensemble.regressor(
        arms=arms, segments=segments, features=features, space=space, **whole, **chosen
    )

    def rule(prediction: Prediction, mask: Array, belief: Belief) -> Array:
        known = space.xp.asarray(belief.number) >= 0
        return explore.frozen(prediction.draws, mask, known=known)

    return contextual.policy(
        SPEC.name, regressor, rule, arms=arms, segments=segments, features=features, space=space
    )
