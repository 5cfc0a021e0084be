"""Traits: what receipts and interactions say of each customer, computed on a schedule.

    receipts, interactions → `history` (arrays) → `fit` (models, traits) → `publish` (one version)
    → the carrier → every host's local file → segments and features of decisions

A trait is an attribute like any other, under a name of `vectors.TRAITS`; what a request or an
import tells under the same name goes before it. `schedule` says when, `recommend` serves the newest
recommender, newcomers included, and `arrivals` publishes what it tells of them between refits.
"""
