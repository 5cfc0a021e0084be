"""Pure maths of Barter's bandits: policies, simplex guardrails, the sampler, the integer ledger.

Start with :mod:`bandits.types`; :mod:`bandits.policies` makes a policy by name. Nothing here does
I/O, reads a clock or keeps state, and importing it does not import JAX.
"""
