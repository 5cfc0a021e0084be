"""The options that the policies over linear arms share."""

from bandits.policies.spec import Option

OPTIONS = (
    Option(
        "precision", "number", None, 0.0, 1e9, True,
        "How strongly coefficients are drawn to 0; the evidence chooses when left out.",
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
)  # fmt: skip
