"""Several hosts behind a load balancer, one PostgreSQL: pulled cables, wrong clocks, a lost disk.

Every host has its processes, its data folder and its network namespace, with one cable to where
app servers ask and one to PostgreSQL, which is in a namespace too. The first host's clock is right,
the others are an hour ahead and behind, where there is a C compiler (Debian: apt-get install gcc).
The second acknowledges what PostgreSQL has committed, and is lost with its disk in the end.

`make chaos` runs three whole hosts; `make test` two without learners, which take long to start:
there the test learns itself.
"""

import functools
import http.client
import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest
from sqlalchemy import Engine, func, select

from service import db, embedded, queries
from service.config import Config
from service.learner import learn
from service.models import Decision, Outcome, Snapshot
from service.verify import verify
from tests.acceptance import network
from tests.acceptance.clients import CLIENTS, Clients, Host, launched, until, wait_until_learnt
from tests.acceptance.network import Network
from tests.conftest import SECRET, folder
from tests.loop import BUYS, definition

DATABASE, FIRST = 2, 11
PATIENCE_SECONDS, THINKS_SECONDS = 1.5, 0.02
NOTICED_SECONDS = db.GONE_SECONDS + 20  # a busy machine takes its time to learn; unnoticed: 60
PORT = 8080
pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]

HOLDS = """
import sys, time
from service import db, queries
engine = db.engine(sys.argv[1])
sys.stdin.readline()
with engine.begin() as connection:
    while not connection.scalar(queries.TRY_LOCK, {"id": int(sys.argv[2])}):
        time.sleep(0.001)
    print("holds", flush=True)
    time.sleep(600)
"""


class Fleet(NamedTuple):
    """The hosts, the network between them and PostgreSQL, as the test sees them."""

    network: Network
    engine: Engine
    url: str
    hosts: list[Host]
    prefixes: list[list[str]]
    key: str
    whole: bool

    @property
    def addresses(self) -> list[str]:
        """Where app servers find the hosts."""
        return [self.network.address("f", FIRST + place) for place in range(len(self.hosts))]


@pytest.fixture
def wires() -> Iterator[Network]:
    if why := network.missing():
        pytest.skip(why)
    made = Network()
    yield made
    made.close()


@pytest.fixture
def database(wires: Network) -> Iterator[Config]:
    """A PostgreSQL of this test's own on a machine of its own."""
    prefix = wires.add(DATABASE, "b")
    with folder() as path:
        own = Config(data=path, secret=SECRET)
        embedded.start(own)
        superuser = embedded.address(own).replace("//barter@", f"//{embedded.SUPERUSER}@")
        with psycopg.connect(superuser, autocommit=True) as connection:
            address = wires.address("b", DATABASE)
            connection.execute(f"ALTER SYSTEM SET listen_addresses = '{address}'")
            connection.execute("ALTER SYSTEM SET max_connections = 200")
        with (path / "postgres" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {address}/24 trust\n")
        embedded.stop(own)
        begin = "from service import config, embedded; embedded.start(config.Config.from_env())"
        command = [*prefix, sys.executable, "-c", begin]
        subprocess.run(command, env=own.environment(), check=True)
        try:
            yield own
        finally:
            embedded.stop(own)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.chaos)], ids=["two", "three"])
def fleet(request: pytest.FixtureRequest, wires: Network, database: Config) -> Iterator[Fleet]:
    whole = bool(request.param)
    engine = db.engine(embedded.address(database))
    key = launched(embedded.address(database), engine)
    url = f"postgresql://barter@{wires.address('b', DATABASE)}:{embedded.PORT}/barter"
    with folder() as path:
        hosts: list[Host] = []
        prefixes: list[list[str]] = []
        for place, hours in enumerate((0, 1, -1)[: 3 if whole else 2]):
            (path / str(place)).mkdir(mode=0o700)
            config = Config(
                data=path / str(place), secret=SECRET, database_url=url, host="0.0.0.0",
                port=PORT, workers=1, acknowledge="database" if place == 1 else "disk",
            )  # fmt: skip
            prefixes.append(wires.add(FIRST + place))
            parts = ("serve",) if whole else ("worker", "carry")
            environment = network.clock(path / str(place), hours) if hours else None
            hosts.append(Host(config, prefix=prefixes[-1], parts=parts, environment=environment))
        try:
            yield Fleet(wires, engine, url, hosts, prefixes, key, whole)
        finally:
            for host in hosts:
                host.kill()
            engine.dispose()


def post(address: str, key: str, path: str, body: Mapping[str, object]) -> tuple[int, Any]:
    """Ask one host; raises `OSError` where it does not answer in time."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(address, PORT, timeout=PATIENCE_SECONDS)
    try:
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from error
    finally:
        connection.close()


class Kept(NamedTuple):
    """What a shop was told of a decision, by which host, and how many it had asked."""

    reply: dict[str, Any]
    host: int
    tries: int


class Shops(Clients):
    """App servers behind a load balancer: every request to the next host, or the one after that.

    A request keeps its id wherever it is sent.
    """

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._addresses, self._key = fleet.addresses, fleet.key
        self.decided: dict[str, Kept] = {}
        self.reported: set[str] = set()
        self.answers = [0] * len(fleet.hosts)
        self._turn = itertools.count()

    def _shop(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stop.wait(THINKS_SECONDS):
            request_id = uuid.uuid4().hex
            wanted = {"campaign": "spring", "unit": request_id[:8], "request_id": request_id}
            kept = self._send("/v1/decisions", wanted)
            if "acknowledged" in kept.reply:
                continue  # it says that it may be lost
            self.decided[request_id] = kept
            if chance.random() < BUYS[kept.reply["arm"]]:
                event = {"event_id": request_id, "decision_id": kept.reply["decision_id"],
                         "kind": "purchased", "revenue_minor": 3000}  # fmt: skip
                self._send("/v1/outcomes", event)
                self.reported.add(request_id)

    def _send(self, path: str, body: Mapping[str, object]) -> Kept:
        turn = next(self._turn)
        for tries in itertools.count(1):
            host = (turn + tries) % len(self._addresses)
            try:
                status, told = post(self._addresses[host], self._key, path, body)
            except OSError:
                continue
            if status in (200, 202):
                self.answers[host] += 1
                return Kept(told, host, tries)
            assert status == 503, told
            time.sleep(0.02)
        raise AssertionError


def test_partitions_wrong_clocks_and_a_lost_disk_lose_and_double_nothing(fleet: Fleet) -> None:
    engine, (campaign,) = fleet.engine, campaign_ids(fleet.engine)
    for address in fleet.addresses:
        until(functools.partial(decides, fleet, address))
    with holding(fleet, campaign) as hold, learning(fleet, campaign), Shops(fleet) as shops:
        time.sleep(3 if fleet.whole else 1)
        took = cut_off_while_learning(fleet, shops, hold)
        if fleet.whole:
            cut_off_from_its_clients(fleet, shops)
        before = shops.answers[1]
        until(lambda: shops.answers[1] > before + 20)
        fleet.hosts[1].kill()
        shutil.rmtree(fleet.hosts[1].config.data)
        time.sleep(1)
        until(lambda: count(engine, Decision) >= len(shops.decided) - CLIENTS)
    print(
        f"{len(shops.decided)} decisions and {len(shops.reported)} outcomes acknowledged by"
        f" {len(fleet.hosts)} hosts {shops.answers}; a cut-off learner was replaced in {took:.1f} s"
    )
    with learning(fleet, campaign):
        wait_until_learnt(engine, len(shops.decided), len(shops.reported))
    assert verify(engine, "spring", sample=200 if fleet.whole else 20).holds
    nothing_is_lost_or_doubled(engine, shops)
    all_say_the_same(fleet, [0, 2] if fleet.whole else [0])
    if not network.CLOCKS:
        pytest.skip("all of it held, but with right clocks: there is no C compiler (cc)")


def campaign_ids(engine: Engine) -> Sequence[int]:
    with engine.connect() as connection:
        return [row.id for row in connection.execute(queries.running_campaigns())]


def decides(fleet: Fleet, address: str) -> bool:
    """Tell whether a host draws arms yet."""
    try:
        status, told = post(
            address, fleet.key, "/v1/decisions", {"campaign": "spring", "unit": "a"}
        )
    except OSError:
        return False
    return status == 200 and told["reason"] == "policy"


@contextmanager
def learning(fleet: Fleet, campaign: int) -> Iterator[None]:
    """Learn in this process, where the hosts do not."""
    stop = threading.Event()

    def run() -> None:
        while not (fleet.whole or stop.wait(0.1)):
            learn(fleet.engine, campaign, backend="numpy")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def holding(fleet: Fleet, campaign: int) -> Iterator[Callable[[], None]]:
    """Have a process of the first host ready to take a campaign's lock, when it is called."""
    command = [*fleet.prefixes[0], sys.executable, "-c", HOLDS, fleet.url, str(campaign)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def hold() -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"holds\n"

        try:
            yield hold
        finally:
            process.kill()


def cut_off_while_learning(fleet: Fleet, shops: Shops, hold: Callable[[], None]) -> float:
    """Cut the first host off from PostgreSQL while it holds the campaign's lock.

    It goes on deciding; another learner takes over, after so many seconds as are returned.
    """
    hold()
    fleet.network.cut(FIRST, "b")
    started, version = time.monotonic(), newest(fleet.engine)
    answered = shops.answers[0]
    time.sleep(1)
    assert newest(fleet.engine) == version, "one learns at a time"
    until(lambda: newest(fleet.engine) > version)
    took = time.monotonic() - started
    assert took < NOTICED_SECONDS
    assert shops.answers[0] > answered + 20, "it goes on deciding"
    seen = count(fleet.engine, Decision)
    until(lambda: count(fleet.engine, Decision) > seen + 20)
    fleet.network.mend(FIRST, "b")
    return took


def cut_off_from_its_clients(fleet: Fleet, shops: Shops) -> None:
    """Cut the third host off from those who ask: the others are asked."""
    fleet.network.cut(FIRST + 2, "f")
    time.sleep(PATIENCE_SECONDS)
    before, others = shops.answers[2], sum(shops.answers)
    until(lambda: sum(shops.answers) > others + 50)
    assert shops.answers[2] <= before + CLIENTS
    fleet.network.mend(FIRST + 2, "f")
    until(lambda: shops.answers[2] > before + 20)


def newest(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.max(Snapshot.version))) or 0


def count(engine: Engine, table: type[Decision] | type[Outcome]) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def nothing_is_lost_or_doubled(engine: Engine, shops: Shops) -> None:
    with engine.connect() as connection:
        rows = {
            str(row.id): row
            for row in connection.execute(select(Decision.id, Decision.arm, Decision.propensity))
        }
        reported = set(connection.scalars(select(Outcome.event_id)))
    arms = [arm.key for arm in definition().arms]
    assert {kept.reply["decision_id"] for kept in shops.decided.values()} <= rows.keys()
    for reply, _, tries in shops.decided.values():
        row = rows[reply["decision_id"]]
        # Two hosts may have answered one id, by two snapshots: the log has one of the two.
        if tries == 1:
            assert (arms[row.arm], row.propensity) == (reply["arm"], reply["propensity"])
    assert shops.reported <= reported
    assert len(reported) - len(shops.reported) <= CLIENTS, "an unacknowledged last request each"


def all_say_the_same(fleet: Fleet, hosts: Sequence[int]) -> None:
    """Ask the hosts that are left for the same: by one snapshot, they give the same answer."""
    version = newest(fleet.engine)
    for host in hosts:
        address = fleet.addresses[host]
        until(functools.partial(knows, fleet, address, version))
    compared = 0
    for number in range(50):
        wanted = {"campaign": "spring", "unit": f"u{number}", "request_id": f"same-{number}"}
        told = [
            post(fleet.addresses[host], fleet.key, "/v1/decisions", wanted)[1] for host in hosts
        ]
        said = [tuple(one[name] for name in ("decision_id", "arm", "propensity")) for one in told]
        # What is asked is learnt as well: one of them may have the next snapshot already.
        if len({one["snapshot"] for one in told}) == 1:
            assert len(set(said)) == 1, said
            compared += 1
    assert compared > 10


def knows(fleet: Fleet, address: str, version: int) -> bool:
    """Tell whether a host has a snapshot, or a newer one."""
    told = post(address, fleet.key, "/v1/decisions", {"campaign": "spring", "unit": "a"})[1]
    return int(told["snapshot"]) >= version
