"""Barter's service: campaigns, decisions, outcomes and reports over Flask and PostgreSQL.

Modules import only what stands before them::

    config → embedded → db → models → definition → queries → spool → catalogue
    → {eligibility, outcomes, snapshots} → {decide, learner, shipper, reports}
    → {campaigns, keys, users} → views → app → supervisor → cli

``service.client`` is the SDK and imports nothing else of this package; import-linter holds
all of it. Start reading at ``service/decide.py`` and ``service/learner.py``.
"""
