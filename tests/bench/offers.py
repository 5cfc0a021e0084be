"""How many decisions a minute `barter decide` makes for a file of customers.

A campaign of ten arms decides by ``linear_thompson`` over 64 numbers, with exact probabilities, and
has learnt from 20,000 decisions. The embedded PostgreSQL, the command and this script share the
machine, nothing else is started. When the file of offers appears every decision is in PostgreSQL,
committed; until the command ends they are entered in the log, as rows with indexes::

    python -m tests.bench.offers --rows 1000000
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine, text

from bandits import artefact
from bandits.types import Batch, Contexts
from service import campaigns, db, embedded
from service.config import Config
from service.models import Snapshot
from tests.loop import definition

ARMS, FEATURES, LEARNT, GROUP = 10, 64, 20_000, 100_000
SIZE = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('decisions')"


def plan() -> Any:
    """Return the campaign."""
    arms = [
        {"key": f"off-{arm}", "name": f"{arm} % off",
         "offer": {"kind": "percentage", "percent": arm} if arm else {"kind": "none"}}
        for arm in range(ARMS)
    ]  # fmt: skip
    features = [
        {"kind": "number", "key": f"trait_{place}", "name": f"Trait {place}", "scale": 1}
        for place in range(FEATURES)
    ]
    return definition(
        key="mailing", arms=arms, default_arm="off-0", segments=[], features=features,
        policy={"name": "linear_thompson"},
    )  # fmt: skip


def launch(engine: Engine) -> None:
    """Launch the campaign with what it has learnt."""
    wanted = plan()
    rng = np.random.default_rng(1)
    with db.transaction(engine) as session:
        campaign = campaigns.create(session, wanted, actor="bench")
        campaigns.transition(session, wanted.key, "launch", actor="bench")
        policy = wanted.build_policy()
        x = np.rint(rng.normal(size=(LEARNT, FEATURES)) * 4096).astype(np.int64)
        arm = rng.integers(0, ARMS, LEARNT).astype(np.int32)
        effect = rng.normal(size=(ARMS, FEATURES)) * 30
        reward = np.rint((x / 4096 * effect[arm]).sum(axis=1) + rng.normal(size=LEARNT) * 1000)
        one = np.ones(LEARNT, np.int64)
        batch = Batch(
            Contexts(np.zeros(LEARNT, np.int32), x), arm, np.full((LEARNT, ARMS), 1 / ARMS),
            one, reward.astype(np.int64), one, None,
        )  # fmt: skip
        state = policy.update(policy.init(), batch)
        session.add(
            Snapshot(
                campaign_id=campaign.id, version=1, revision=campaign.revision,
                state=artefact.to_bytes(state, policy=policy.name), digest=artefact.digest(state),
                decision_position=0, outcome_position=0,
            )
        )  # fmt: skip


def customers(path: Path, rows: int) -> None:
    """Write a file of customers."""
    rng = np.random.default_rng(2)
    names = [f"trait_{place}" for place in range(FEATURES)]
    schema = pa.schema([("unit", pa.string()), *((name, pa.float32()) for name in names)])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, GROUP):
            count = min(GROUP, rows - first)
            values = rng.normal(size=(FEATURES, count)).astype(np.float32)
            units = pa.array([f"customer-{first + row}" for row in range(count)])
            writer.write_table(pa.table([units, *map(pa.array, values)], schema=schema))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="customers (1000000)")
    parser.add_argument("--rounds", type=int, default=1, help="runs (1)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode())
        url = embedded.start(config)
        try:
            db.migrate(url)
            engine = db.engine(url)
            launch(engine)
            given = Path(folder) / "customers.parquet"
            customers(given, chosen.rows)
            print(f"{chosen.rows:,} customers, {given.stat().st_size / 1e6:,.0f} MB\n")
            print("| run | decisions a minute | seconds | until in the log | its processor s"
                  " | its peak MB |\n|-|-:|-:|-:|-:|-:|")  # fmt: skip
            for number in range(chosen.rounds):
                once(config, url, given, number, chosen.rows)
            with engine.connect() as connection:
                stored = connection.scalar(text("SELECT count(*) FROM decisions"))
                size = connection.scalar(text(SIZE))
            print(f"\n{stored:,} decisions in PostgreSQL, {size / stored:,.0f} bytes each")
            engine.dispose()
        finally:
            embedded.stop(config)
    return 0


def once(config: Config, url: str, given: Path, number: int, rows: int) -> None:
    """Run the command once and print a line."""
    environment = os.environ | {
        "BARTER_DATA": str(config.data), "BARTER_SECRET": config.secret.decode(),
        "DATABASE_URL": url,
    }  # fmt: skip
    output = given.with_name(f"offers-{number}.parquet")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = subprocess.Popen(
        [
            sys.executable, "-c", "import sys; from service.cli import main; sys.exit(main())",
            "decide", "--campaign", "mailing", "--input", str(given), "--again",
            "--output", str(output),
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not output.exists() and command.poll() is None:
        time.sleep(0.01)
    offered = time.perf_counter() - began
    if command.wait():
        raise RuntimeError("the command failed")
    logged = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"| {number + 1} | {rows / offered * 60:,.0f} | {offered:.1f} | {logged:.1f}"
          f" | {used:.1f} | {after.ru_maxrss / 1024:,.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
