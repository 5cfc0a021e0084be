"""The schema's history, as Alembic scripts; ``barter migrate`` runs what is missing."""
