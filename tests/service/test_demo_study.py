"""The study and the show, at a reduced size, over the real application and database."""

import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sqlalchemy import Engine, select, text

from bandits import simulate
from service.client import Client, WsgiTransport
from service.config import Config
from service.db import transaction
from service.demo import figures, panel, shop, study, world
from service.demo.run import Interrupted, free_port, heeding, load_panel, profits, regrets
from service.demo.show import Show
from service.learner import learn
from service.models import Campaign, Customer, Decision, Product, Transaction, User
from service.users import authenticate
from tests.web import Web, serving


@pytest.fixture(scope="module")
def goods() -> panel.Panel:
    return panel.synthetic(households=120)


@pytest.fixture(scope="module")
def fit(goods: panel.Panel) -> world.Fit:
    return world.fit(goods)


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


class Shop:
    """The demo's own client on the application of the test, with the loop stepped by hand."""

    def __init__(self, web: Web) -> None:
        self.web, self.access = web, shop.open_doors(web.engine)
        self.client = Client(
            "http://in-process",
            self.access.api_key,
            timeout=60,
            raise_errors=True,
            transport=WsgiTransport(web.app),
        )
        web.loop.carry()

    def step(self, _seconds: float = 0.0) -> None:
        """Carry and learn what there is."""
        self.web.loop.carry()
        with self.web.engine.connect() as connection:
            campaigns = connection.scalars(select(Campaign.id)).all()
        for campaign in campaigns:
            while learn(self.web.engine, campaign, backend="numpy"):
                pass
        self.web.loop.carry()


def silent() -> tuple[Show, io.StringIO]:
    screen = io.StringIO()
    return Show(Console(file=screen, width=120, highlight=False)), screen


def test_the_study_reads_its_figures_from_the_log(web: Web, fit: world.Fit) -> None:
    demo = Shop(web)
    decisions = 1_500
    runners = [
        study.Runner(demo.client, fit, seed, study.visitors_for(decisions)) for seed in (1, 2)
    ]
    demo.step()
    show, _ = silent()
    rows = study.study(
        runners, web.engine, fit.world, decisions=decisions, show=show, wait=demo.step
    )
    assert [row.seed for row in rows] == [1, 2]
    for runner, row in zip(runners, rows, strict=True):
        segment, arm = drawn(web.engine, runner.campaign, decisions)
        assert row.decisions == decisions
        assert row.regret == pytest.approx(simulate.regret_minor(fit.world, segment, arm).sum())
        split = simulate.equal_split_regret_minor(fit.world, segment)
        assert row.split_regret == pytest.approx(split.sum())
        profit = simulate.profit_minor(fit.world)
        late = slice(1_200, decisions)
        assert row.late_profit == pytest.approx(profit[segment[late], arm[late]].mean())
        assert row.late_best == pytest.approx(profit.max(axis=1)[segment[late]].mean())
        assert row.ratio < 1.0
        assert row.late_ratio > 0.8
    page = study.markdown(rows, fit, source="a test", decisions=decisions)
    assert f"| 2 | {rows[1].regret / 100:,.2f} |" in page
    assert "| loyal |" in page


def drawn(engine: Engine, campaign: str, count: int) -> tuple[simulate.Ints, simulate.Ints]:
    with engine.connect() as connection:
        rows = connection.execute(
            select(Decision.segment, Decision.arm)
            .join(Campaign, Campaign.id == Decision.campaign_id)
            .where(Campaign.key == campaign, Decision.reason == "policy")
            .order_by(Decision.position)
            .limit(count)
        ).all()
    table = np.array(rows, np.int64)
    return table[:, 0], table[:, 1]


def test_the_demo_from_import_to_summary(
    web: Web, goods: panel.Panel, fit: world.Fit, config: Config
) -> None:
    demo = Shop(web)
    engine = web.engine
    quiet = lambda done, total: None  # noqa: E731
    assert shop.import_products(engine, goods, quiet) == goods.products.num_rows
    assert shop.import_customers(engine, config, fit, quiet) == fit.known.id.size
    assert shop.import_transactions(engine, config, goods, quiet) == goods.lines.num_rows
    assert shop.import_transactions(engine, config, goods, quiet) == 0, "a repeat adds nothing"
    with engine.connect() as connection:
        paid = connection.scalar(
            text("SELECT sum(paid_minor) FROM transactions"),
        )
        for table in (Product, Customer, Transaction):
            assert connection.scalar(select(text("count(*)")).select_from(table))
    assert int(paid or 0) == goods.column("paid_minor").sum()

    campaign = shop.launch(demo.client, fit, key="soft-drinks")
    demo.step()
    seen: list[int] = []
    traffic = shop.shop(
        demo.client, fit, campaign=campaign, seed=3, count=400,
        report=lambda done, total: seen.append(done),
    )  # fmt: skip
    demo.step()
    assert traffic.sent == 400
    assert traffic.lost == traffic.unreported == 0
    assert max(seen) == 400
    assert figures.settle(engine, campaign, decisions=400, outcomes=traffic.purchases)
    assert not figures.settle(engine, campaign, decisions=401, outcomes=0, timeout_seconds=0.0), (
        "what was never sent cannot arrive"
    )
    total = figures.totals(engine, fit.world, campaign)
    decisions, held_out = figures.counts(engine, campaign)
    assert decisions == 400
    assert total.decisions == 400 - held_out
    # The stored attributes alone told the segments: nothing was sent with the requests.
    segment, _ = drawn(engine, campaign, 400)
    assert len(np.unique(segment)) > 1
    assert 0 <= total.regret <= total.best
    assert total.profit <= total.best
    assert total.split + total.split_regret == pytest.approx(total.best)


def test_a_second_launch_takes_the_next_free_key(web: Web, fit: world.Fit) -> None:
    demo = Shop(web)
    assert shop.launch(demo.client, fit, key="soft-drinks") == "soft-drinks"
    assert shop.launch(demo.client, fit, key="soft-drinks") == "soft-drinks-2"


def test_the_demo_user_gets_a_new_password_each_time(web: Web) -> None:
    first, second = shop.open_doors(web.engine), shop.open_doors(web.engine)
    assert first.password != second.password
    assert first.api_key != second.api_key
    with transaction(web.engine) as session:
        assert authenticate(session, first.email, first.password) is None
        user = authenticate(session, second.email, second.password)
        assert isinstance(user, User)
        assert user.role == "admin"


def test_the_lag_is_measured_to_the_first_decision_that_had_learnt_it() -> None:
    outcomes = np.array([[1, 10.0], [5, 11.0], [9, 12.0]])
    snapshots = np.array([[1, 2], [2, 6], [3, 7]])  # the outcome at 9 is not learnt yet
    served = np.array([[0, 9.0], [1, 10.5], [2, 12.0]])  # version 3 was never served
    assert figures.lags(outcomes, snapshots, served).tolist() == [0.5, 1.0]
    skipped = np.array([[0, 9.0], [2, 10.25]])
    assert figures.lags(outcomes[:1], snapshots, skipped).tolist() == [0.25]


def test_the_summary_is_printed_in_plain_lines_where_there_is_no_terminal(fit: world.Fit) -> None:
    show, screen = silent()
    with show.task("Serving") as report:
        for done in range(0, 1_001, 10):
            report(done, 1_000)
    total = figures.Totals(1_000, 30_500.0, 120, 31_000.0, 32_000.0, 28_000.0, 31_500.0)
    profits(show, fit, total)
    band = {
        "prior": "the policy's own",
        "assumption": "Assumes what the policy assumes.",
        "mean": [1.0, 900.0],
        "low": [0.0, 700.0],
        "high": [2.0, 1300.0],
    }
    bounds = {"mean": None, "low": 0.0, "high": None}
    regrets(show, total, {"regret": {"bands": [band], "equal_split": [], "prior_free": bounds}})
    said = screen.getvalue()
    assert "\x1b" not in said, "no escape codes"
    assert said.count("Serving: ") == 4
    assert "Serving: 500 of 1,000" in said
    assert "0.3050" in said
    assert "+8.9%" in said
    assert "7.00 to 13.00" in said
    assert "0.00 to unknown" in said
    assert "The first of the estimates: Assumes what the policy assumes." in said
    assert "Barter's true regret is 25% of the equal split's." in said


def test_on_a_terminal_there_are_bars() -> None:
    screen = io.StringIO()
    show = Show(Console(file=screen, width=100, force_terminal=True, highlight=False))
    with show.task("Serving") as report:
        report(50, 100)
    assert "\x1b" in screen.getvalue()
    assert "Serving: 0.0 s" in screen.getvalue()


def test_without_the_panel_the_demo_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Path:
        raise panel.PanelUnavailableError("no network")

    monkeypatch.setattr(panel, "fetch", refuse)
    show, screen = silent()
    assert load_panel(show, tmp_path).synthetic
    assert "The retail panel is not available: no network." in screen.getvalue()
    assert "NOTHING BELOW IS REAL DATA" in screen.getvalue()


def test_a_taken_port_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        show, screen = silent()
        assert free_port(show, "127.0.0.1", port) != port
        assert f"Port {port} is taken" in screen.getvalue()
    assert free_port(show, "127.0.0.1", port) == port


def test_ctrl_c_ends_a_long_step() -> None:
    stop = threading.Event()
    checked = heeding(lambda done, total: None, stop)
    checked(1, 2)
    stop.set()
    with pytest.raises(Interrupted):
        checked(2, 2)
