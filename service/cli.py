"""The command ``barter``: every process and every chore of the service."""

import argparse
import contextlib
import datetime as dt
import gc
import getpass
import inspect
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import Engine

from service import logs
from service.config import Config, ConfigError
from service.errors import BarterError
from service.models import IMPORTS, ROLES, SCOPES

YIELDING = 5
"""How nice carrier and learner are: where processors are scarce, checkouts go first."""


def serve(config: Config, _: argparse.Namespace) -> int:
    """Start everything on this host and keep it alive until Ctrl-C.

    SIGHUP replaces the web workers one by one, without a request that fails.
    """
    from service.supervisor import Barter, until_signalled

    with until_signalled() as stop, Barter(config) as barter:
        signal.signal(signal.SIGHUP, lambda *_: barter.renew())
        print(f"Barter is ready: console and API at {barter.url} (Ctrl-C stops it)", flush=True)
        if not _any_user(config):
            print("Nobody can log in yet. Add yourself: barter user add you@example.com")
        stop.wait()
    return 0


def web(config: Config, _: argparse.Namespace) -> int:
    """Run the web workers only; they answer from the local file that `carry` keeps.

    SIGHUP replaces them one by one, without a request that fails.
    """
    from service.listener import inherited
    from service.supervisor import PARENT, when_orphaned
    from service.workers import Workers

    # Workers are as many as there are cores: a second thread for a product of matrices would only
    # wait for its turn, 16 ms instead of 0.6 for recommendations beside a busy learner.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _share_figures(config)
    if parent := os.environ.get(PARENT):
        when_orphaned(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))
    Workers(inherited(config), config.workers).run()
    return 0


def worker(config: Config, _: argparse.Namespace) -> int:
    """Run one web worker on a socket that it is given; `web` starts them."""
    from service.app import create_app
    from service.hot import Hot
    from service.listener import inherited
    from service.supervisor import when_orphaned
    from service.webserver import serve

    # What was acknowledged is on disk, and nobody is left to hand requests to.
    when_orphaned(os.getppid(), lambda: os._exit(1))
    # The writer of the log asks for its turn after half a millisecond, not after five.
    sys.setswitchinterval(0.0005)
    app = create_app(config)
    _settle()
    serve(app, Hot(app).routes, inherited(config))
    return 0


def _settle() -> None:
    """Keep what is there now: looking through it for garbage would hold up the process's work."""
    gc.collect()
    gc.freeze()


def _share_figures(config: Config) -> None:
    """Give the workers an empty folder in which to add up their counts; see `service.metrics`."""
    folder = config.data / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def carry(config: Config, _: argparse.Namespace) -> int:
    """Run the carrier only: the local log up to Postgres, campaigns and snapshots down."""
    from service import db
    from service.carrier import NEWS, Carrier, keep_index
    from service.imports import host
    from service.spool import Spool
    from service.supervisor import database_url, follow, until_signalled

    at_once = config.acknowledge == "database"
    if not at_once:
        os.nice(YIELDING)
    url = database_url(config)
    spool = Spool(config.data)
    carrier = Carrier(spool, db.engine(url))
    with until_signalled() as stop:
        if at_once:
            threading.Thread(
                target=carrier.keep_shipping, args=(stop,), name="ship", daemon=True
            ).start()
        indexer = threading.Thread(target=keep_index, args=(spool, stop), name="index", daemon=True)
        indexer.start()
        reader = threading.Thread(target=host.run, args=(config, stop), name="imports", daemon=True)
        reader.start()
        follow(url, carrier.changed, stop, only=NEWS)
        _settle()
        carrier.run(stop)
    return 0


def learn(config: Config, _: argparse.Namespace) -> int:
    """Run a learner only; any number may run, one works per campaign."""
    from service import db
    from service.auto import Chooser
    from service.learner import Learner
    from service.pending import Enterer
    from service.retention import Keeper
    from service.retraining import Retrainer
    from service.supervisor import database_url, follow, until_signalled
    from service.traits import arrivals, schedule

    url = database_url(config)
    learner = Learner(db.engine(url))
    keep = dt.timedelta(days=config.keep_days) if config.keep_days else None
    beside = {
        "keeper": Keeper(_patient(url), keep=keep).run,
        "enterer": Enterer(_patient(url)).run,
        "chooser": Chooser(db.engine(url)).run,
        "retrainer": Retrainer(db.engine(url)).run,
        "observer": schedule.Observer(_patient(url)).run,
        "arrivals": arrivals.Observer(db.engine(url)).run,
    }
    with until_signalled() as stop:
        for name, run in beside.items():
            threading.Thread(target=run, args=(stop,), name=name, daemon=True).start()
        follow(url, learner.wake, stop, only="outcomes")
        threading.Thread(target=_wake_on_stop, args=(learner.wake, stop), daemon=True).start()
        _settle()
        learner.run(stop)
    return 0


def _patient(url: str) -> Engine:
    """Return an engine for work that reads whole tables, or whole files."""
    from service import db

    return db.engine(url, pool_size=2, statement_timeout_seconds=600.0)


def migrate(config: Config, _: argparse.Namespace) -> int:
    """Bring the database's schema up to this version."""
    from service import db
    from service.supervisor import database_url

    db.migrate(database_url(config))
    print("The database is up to date.")
    return 0


def _wake_on_stop(wake: threading.Event, stop: threading.Event) -> None:
    stop.wait()
    wake.set()


@contextlib.contextmanager
def _engine(config: Config, *, patient: bool = False) -> Iterator[Engine]:
    """Give an engine on the database, having started the embedded one where that is used."""
    from service import db
    from service.supervisor import database_url

    url = database_url(config)
    engine = _patient(url) if patient else db.engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _any_user(config: Config) -> bool:
    from sqlalchemy import exists, select

    from service.models import User

    with _engine(config) as engine, engine.connect() as connection:
        return bool(connection.scalar(select(exists().where(User.id > 0))))


def add_user(config: Config, arguments: argparse.Namespace) -> int:
    """Add a person who may log in to the console; asks for the password."""
    from service import db, users

    password = os.environ.get("BARTER_PASSWORD") or getpass.getpass("Password: ")
    with _engine(config) as engine, db.transaction(engine) as session:
        user = users.create(
            session, email=arguments.email, name=arguments.name or arguments.email,
            role=arguments.role, password=password, actor="command line",
        )  # fmt: skip
        print(f"{user.email} may now log in as {user.role}.")
    return 0


def add_key(config: Config, arguments: argparse.Namespace) -> int:
    """Make an API key for an app server; it is shown once."""
    from service import db, keys

    with _engine(config) as engine, db.transaction(engine) as session:
        _, secret = keys.create(
            session, name=arguments.name, scopes=arguments.scope, actor="command line"
        )
    print(secret)
    return 0


def verify(config: Config, arguments: argparse.Namespace) -> int:
    """Recompute a campaign's learnt state and a sample of its decisions from its log."""
    from rich.progress import Progress

    from service.verify import verify as check

    with _engine(config) as engine, Progress() as bar:
        task = bar.add_task("Replaying decisions", total=arguments.sample)
        found = check(
            engine, arguments.campaign, sample=arguments.sample,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    state = f"Snapshot {found.snapshot}: state {found.digest[:16]}…"
    if found.recounted:
        same = "equals" if found.digest == found.rebuilt else "DIFFERS FROM"
        print(f"{state} {same} the rebuild from the log.")
    else:
        print(
            f"{state} cannot be recounted: what it learnt of decisions up to position"
            f" {found.dropped:,} is no longer in the log."
        )
    print(f"{found.replayed} decisions replayed, {len(found.differing)} differ.")
    if found.lost:
        print(f"{found.lost} repeat decisions that are no longer in the log.")
    for decision in found.differing[:20]:
        print(f"  differs: {decision}")
    return 0 if found.holds else 1


def import_file(config: Config, arguments: argparse.Namespace) -> int:
    """Bring data in from a CSV or Parquet file.

    The file may be of any size. Columns are found by their names, delimiter and byte order mark by
    themselves; amounts are in major units (12.99), times in ISO 8601. The same file twice adds
    nothing, and an import that was cut short goes on where it stood: just run it again.

      transactions   unit, product_id, bought_at, paid (or price); basket, quantity, discount, id
      interactions   unit, product_id, kind (view, click, cart, purchase, review, return), at; value
      products       id; name, category, department, price, unit_cost, stock
      competitor_prices  product_id, competitor, price, at
      customers      unit; every further column becomes an attribute
    """
    from service.imports import command
    from service.supervisor import until_signalled

    # A chunk of a file takes as long as the machine is busy: half a minute has been seen.
    with until_signalled() as stop, _engine(config, patient=True) as engine:
        return command.run(engine, config, arguments, stop)


def decide_file(config: Config, arguments: argparse.Namespace) -> int:
    """Choose an offer for every customer of a Parquet file.

    The file may be of any size, with a row per customer: a column "unit" (or --unit COLUMN), and
    every further column is an attribute that the campaign's rules and features may read, by its
    name; what is empty is unknown, and what is stored about the customer fills it in. The output
    has a row for each, in the same order: decision_id (report outcomes under it), arm, offer,
    propensity, reason, segment.

    Decisions are in PostgreSQL when the offers are written, and are then entered in the log like
    any other: reports see them, and the campaign learns from their outcomes. Should the command be
    stopped meanwhile, barter serve enters the rest. A run that was cut short goes on where it
    stood: just run it again with the same names. No customer gets two decisions of one run.

    Campaigns with a budget, sticky arms or recommended products are asked by POST /v1/decisions.

      barter decide --campaign winter-sale --input customers.parquet --output offers.parquet
    """
    # PostgreSQL has the other core: threads that wait for their turn would take it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service import offers_command
    from service.supervisor import until_signalled

    with until_signalled() as stop, _engine(config, patient=True) as engine:
        return offers_command.run(engine, config, arguments, stop)


def demo(config: Config, arguments: argparse.Namespace) -> int:
    """Show the whole loop on real retail data.

    Fetches the retail panel released by 84.51° (31.6 MB, kept for next time; without it, a small
    synthetic shop), imports it, defines a campaign over none/5/10/20/30 % off, and sends simulated
    shoppers, one HTTP request each. They respond as fitted to the panel, which the service does
    not know: so the true regret can be printed beside the service's own estimate. About a minute
    on two cores; then the console stays up until Ctrl-C.
    """
    from service.demo import run

    return run.run(config, arguments)


LESSON = """\
a first campaign:
  barter serve                        PostgreSQL included; the console is at port 8080
  barter user add you@example.com     (in a second terminal) somebody who may log in
  barter key add checkout --scope decide --scope reward
                                      a key for the app server; define the campaign in the console

settings, from the environment:
  BARTER_DATA      folder of the local log, the secret key and the embedded PostgreSQL
  DATABASE_URL     your own PostgreSQL (15 or newer) instead; run barter migrate first
  BARTER_HOST      address to listen on (127.0.0.1)
  BARTER_PORT      port to listen on (8080)
  BARTER_WORKERS   web processes (2)
  BARTER_ACKNOWLEDGE  what an answer means: on this disk (disk), or in PostgreSQL (database)
  BARTER_SECRET    what pseudonyms, cookies and cursors are keyed with; the same on every host
"""

Command = Callable[[Config, argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """Return the command line, with help that teaches."""
    root = argparse.ArgumentParser(
        prog="barter",
        description="Multi-armed bandits for personalised discounts.",
        epilog=LESSON,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, function: Command, help: str) -> argparse.ArgumentParser:
        found = commands.add_parser(
            name,
            help=help,
            description=inspect.getdoc(function),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        found.set_defaults(function=function)
        return found

    add("serve", serve, "start everything on this host")
    add("migrate", migrate, "bring the database schema up to date")
    user = add("user", add_user, "add a console user: barter user add ana@shop.example")
    user.add_argument("action", choices=["add"])
    user.add_argument("email")
    user.add_argument("--name", help="shown in the audit log (default: the address)")
    user.add_argument("--role", choices=ROLES, default="admin")
    key = add("key", add_key, "make an API key: barter key add checkout --scope decide")
    key.add_argument("action", choices=["add"])
    key.add_argument("name")
    key.add_argument(
        "--scope", action="append", choices=SCOPES, required=True, help="repeat for several"
    )
    check = add("verify", verify, "check a campaign's state and decisions against its log")
    check.add_argument("campaign", help="the campaign's key")
    check.add_argument("--sample", type=int, default=1000, help="decisions to replay")
    import_options(add("import", import_file, "import a file: barter import products items.csv"))
    files = add("decide", decide_file, "choose offers for a file of customers")
    files.add_argument("--campaign", required=True, help="the campaign's key")
    files.add_argument("--input", required=True, help="a Parquet file of customers")
    files.add_argument("--output", required=True, help="the Parquet file to write; must not exist")
    files.add_argument("--unit", default="unit", help="the column that names the customer (unit)")
    files.add_argument("--again", action="store_true", help="decide about a finished file anew")
    show = add("demo", demo, "show the whole loop on real retail data")
    demo_options(show)
    add("web", web, "run the web workers only")
    add("worker", worker, "run one web worker; `web` does")
    add("carry", carry, "run the carrier only")
    add("learn", learn, "run a learner only")
    return root


def import_options(found: argparse.ArgumentParser) -> None:
    """Add the options of the import."""
    found.add_argument(
        "kind", choices=(*IMPORTS, "waiting"),
        help="what the rows are; 'waiting' reads the files that the service has taken in",
    )  # fmt: skip
    found.add_argument("file", nargs="?", help="a CSV or Parquet file")
    found.add_argument("--rejects", help="write the refused rows here: line, field, reason")
    found.add_argument(
        "--column", action="append", default=[], metavar="NAME=FIELD",
        help="a column that is called otherwise, such as Kunde=unit; repeat for more",
    )  # fmt: skip
    found.add_argument("--decimals", type=int, default=2, help="digits of the currency (2)")
    found.add_argument("--zone", default="UTC", help="time zone of times without one (UTC)")
    found.add_argument("--encoding", default="utf-8", help="of CSV: utf-8, cp1252, latin-1, utf-16")
    found.add_argument("--again", action="store_true", help="read a file that was imported before")


def demo_options(found: argparse.ArgumentParser) -> None:
    """Add the options of the demo."""
    found.add_argument("--decisions", type=int, default=20_000, help="simulated shoppers (20000)")
    found.add_argument(
        "--seed", type=int, default=1, help="the same seed sends the same shoppers (1)"
    )
    found.add_argument("--no-wait", action="store_true", help="end after the summary")
    found.add_argument("--port", type=int, help="where to listen (default: BARTER_PORT)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    chosen = parser().parse_args(arguments)
    logs.configure()
    try:
        config = Config.from_env()
        function: Command = chosen.function
        return function(config, chosen)
    except (ConfigError, BarterError, RuntimeError) as error:
        print(f"barter: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
