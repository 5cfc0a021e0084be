"""How Alembic reaches the database: by the connection it is handed, or by the environment.

``service.db.migrate`` hands over its connection. A developer who runs ``alembic`` by hand works
on the database that ``barter serve`` would use.
"""

import re

from alembic import context
from sqlalchemy import Connection

from service import db, embedded
from service.config import Config
from service.models import Base


def run(connection: Connection) -> None:
    """Run the migrations, one transaction each."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        compare_server_default=True,
        include_name=included,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def included(name: str | None, kind: str, _: object) -> bool:
    """Tell whether something belongs to the models: all does but the partitions of a table."""
    return kind != "table" or re.fullmatch(r"(decisions|outcomes)_\d+", name or "") is None


def main() -> None:
    """Take the connection that was handed over, or make one."""
    handed = context.config.attributes.get("connection")
    if handed is not None:
        run(handed)
        return
    config = Config.from_env()
    url = config.database_url or embedded.start(config)
    with db.engine(url, statement_timeout_seconds=0).connect() as connection:
        run(connection)


main()
