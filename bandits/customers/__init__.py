"""What is known of customers and prices: lifetime value, elasticity, personas, propensity.

Fitting happens in the learner and may use JAX, which is imported by name where it is needed; every
prediction is numpy, so that serving imports none of it. A fitted model is a named tuple of arrays,
which :mod:`bandits.artefact` stores.
"""
