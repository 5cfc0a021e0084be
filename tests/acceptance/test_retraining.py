"""Retraining: a policy is fitted to the log anew, and log, snapshots and decisions still agree."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, func, select

from bandits import artefact, features
from bandits.regressors import trees
from service import learner, queries, retraining
from service.config import Config
from service.db import transaction
from service.messages import DecisionReply
from service.models import Retraining, Snapshot
from service.replay import Irreproducible, replay
from service.reports.build import campaign_report
from service.retraining import Retrained, Retrainer, due, retrain
from service.verify import verify
from tests.loop import Loop, running

FEATURES: list[dict[str, Any]] = [
    {"kind": "boolean", "key": "app", "name": "App"},
    {"kind": "boolean", "key": "member", "name": "Member"},
]
NEURAL: dict[str, Any] = {"name": "neural_linear", "options": {"units": 4}}
FADING: dict[str, Any] = {"name": "neural_linear", "options": {"units": 4, "half_life": 7}}
ENSEMBLE: dict[str, Any] = {"name": "neural_ensemble", "options": {"units": 16, "members": 8}}
TREES: dict[str, Any] = {"name": "trees_thompson"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def launch(loop: Loop, policy: dict[str, Any]) -> int:
    return loop.launch(objective="conversion", policy=policy, features=FEATURES, segments=[])


def serve(loop: Loop, visits: int) -> list[DecisionReply]:
    """Send customers who want twenty if they are members without the app, or the other way."""
    replies = []
    for _ in range(visits):
        app, member = loop.random.random() < 0.5, loop.random.random() < 0.5
        unit, attributes = f"unit-{loop.random.random()}", {"app": app, "member": member}
        (reply,) = loop.decide(unit, attributes=attributes)
        wanted = "twenty" if app != member else "none"
        if loop.random.random() < (0.7 if reply.arm == wanted else 0.1):
            loop.outcome(reply)
        replies.append(reply)
    return replies


def learnt(loop: Loop, campaign: int, visits: int) -> list[DecisionReply]:
    replies = serve(loop, visits)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    return replies


def served(loop: Loop) -> list[float]:
    """The chance that each of the four kinds of customers gets what it wants."""
    chances = []
    for app in (0, 1):
        for member in (0, 1):
            simplex = loop.live.simplex(0, 0b111, (app * features.ONE, member * features.ONE))
            chances.append(float(simplex[0 if app == member else 2]))
    return chances


def snapshots(loop: Loop) -> list[Snapshot]:
    with transaction(loop.engine) as session:
        return list(session.scalars(select(Snapshot).order_by(Snapshot.version)))


def attempt(loop: Loop, campaign: int) -> Any:
    with loop.engine.connect() as connection:
        return connection.execute(queries.newest_retraining(campaign)).one_or_none()


@pytest.mark.parametrize(
    "policy",
    [NEURAL, FADING, ENSEMBLE, TREES],
    ids=["neural_linear", "neural_linear-half_life", "neural_ensemble", "trees_thompson"],
)
def test_what_was_retrained_serves_replays_and_verifies(loop: Loop, policy: dict[str, Any]) -> None:
    campaign = launch(loop, policy)
    early = learnt(loop, campaign, 320)
    before = served(loop)
    done = retrain(loop.engine, campaign, backend="numpy")
    assert done is not None
    assert (done.number, done.rows, done.version) == (1, 320, len(snapshots(loop)))
    loop.carry()
    after = served(loop)
    assert after != before
    assert np.mean(after) > 0.7, "it has found what no line fits"
    # What comes later is counted on top, whether it is new or takes back what is old.
    for reply in early[::3]:
        loop.outcome(reply, kind="returned")
    learnt(loop, campaign, 40)
    assert loop.live.learnt.trials.sum() == 360
    assert (served(loop) != after) == (policy in (NEURAL, FADING)), "only last layers learn between"
    first, last = snapshots(loop)[done.version - 1], snapshots(loop)[-1]
    assert (first.retraining, last.retraining) == (1, 1)
    assert snapshots(loop)[0].retraining is None
    found = verify(loop.engine, "spring", sample=400)
    assert found.holds
    assert found.replayed == 360
    assert found.snapshot == last.version > done.version
    assert retrain(loop.engine, campaign, backend="numpy") is None, "it is not due again"


def test_what_was_fitted_is_stored_and_carried_once(loop: Loop) -> None:
    campaign = launch(loop, TREES)
    learnt(loop, campaign, 200)
    retrain(loop.engine, campaign, backend="numpy")
    loop.carry()
    for _ in range(3):
        learnt(loop, campaign, 5)
    first, last = snapshots(loop)[0], snapshots(loop)[-1]
    spool = loop.runtime.spool
    assert len(first.state) > 300_000
    assert len(last.state) < 2_000
    assert spool.read(f"snapshot:{campaign}")[8:] == last.state
    written = spool.changed(-1)
    assert written[f"fitted:{campaign}"] < written[f"snapshot:{campaign}"] - 1
    assert loop.live.version == last.version
    assert artefact.digest(loop.live.learnt) == last.digest
    assert loop.live.learnt.trials.sum() == 215


def test_what_was_fitted_cannot_be_changed_afterwards(loop: Loop) -> None:
    campaign = launch(loop, TREES)
    learnt(loop, campaign, 200)
    retrain(loop.engine, campaign, backend="numpy")
    loop.carry()
    (reply,) = serve(loop, 1)
    loop.carry()
    live = loop.live
    with transaction(loop.engine) as session:
        assert replay(session, reply.decision_id).same
        kept = session.scalars(select(Retraining)).one()
        assert kept.state is not None
        fitted = artefact.from_bytes(kept.state, like=live.learnt)
        forged = fitted._replace(threshold=fitted.threshold + 1)
        kept.state = artefact.to_bytes(forged, policy="trees_thompson")
        session.flush()
        loop.runtime.spool.write({f"fitted:{campaign}": kept.state})
        with pytest.raises(Irreproducible, match="another base"):
            replay(session, reply.decision_id)
    stored = snapshots(loop)[-1]
    entry = stored.version.to_bytes(8, "big") + stored.state
    loop.runtime.spool.write({f"snapshot:{campaign}": entry})
    before = served(loop)
    loop.runtime.catalogue.refresh()
    assert served(loop) == before, "the last good picture goes on serving"


def test_a_campaign_is_due_by_half_of_what_was_fitted(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "FEWEST", 30)
    campaign = launch(loop, TREES)

    def is_due() -> bool:
        with loop.engine.connect() as connection:
            return due(connection, campaign)

    assert not is_due()
    learnt(loop, campaign, 29)
    assert not is_due()
    learnt(loop, campaign, 71)
    assert is_due()
    assert Retrainer(loop.engine, backend="numpy").step() == 1
    learnt(loop, campaign, 49)
    assert not is_due()
    assert Retrainer(loop.engine, backend="numpy").step() == 0
    serve(loop, 1)
    loop.carry()
    assert not is_due(), "it has not been learnt yet"
    loop.learn(campaign)
    assert is_due()
    done = retrain(loop.engine, campaign, backend="numpy")
    assert done is not None
    assert (done.number, done.rows) == (2, 150)
    assert verify(loop.engine, "spring", sample=10).holds


def test_only_the_newest_rows_are_fitted_to_but_all_are_counted(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "FEWEST", 40)
    monkeypatch.setattr(retraining, "MOST", 30)
    monkeypatch.setattr("service.learner.CHUNK", 7)
    campaign = launch(loop, TREES)
    learnt(loop, campaign, 60)
    done = retrain(loop.engine, campaign, backend="numpy")
    assert done is not None
    assert done.rows == 30
    loop.carry()
    assert loop.live.learnt.trials.sum() == 60
    assert verify(loop.engine, "spring", sample=10).holds


def test_a_failure_is_told_and_the_last_good_snapshot_serves_on(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = launch(loop, TREES)
    learnt(loop, campaign, 200)
    before = served(loop)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lightgbm", None)
        assert Retrainer(loop.engine, backend="numpy").step() == 0
        first = attempt(loop, campaign)
        assert "pip install 'barter[trees]'" in first.error
        assert Retrainer(loop.engine, backend="numpy").step() == 0
        assert attempt(loop, campaign).started_at == first.started_at, "not tried again at once"
        without.setattr(retraining, "RETRY_SECONDS", 0.0)
        assert Retrainer(loop.engine, backend="numpy").step() == 0
        assert attempt(loop, campaign).number == first.number
        assert attempt(loop, campaign).started_at > first.started_at
    loop.carry()
    assert served(loop) == before
    with transaction(loop.engine) as session:
        health = campaign_report(session, "spring").health
    assert not health.ok
    assert "could not be retrained" in health.notes[0]
    assert "pip install 'barter[trees]'" in health.notes[0]
    learnt(loop, campaign, 10)
    monkeypatch.setattr(retraining, "RETRY_SECONDS", 0.0)
    assert Retrainer(loop.engine, backend="numpy").step() == 1
    with transaction(loop.engine) as session:
        health = campaign_report(session, "spring").health
    assert health.ok
    assert verify(loop.engine, "spring", sample=50).holds


def _no_network(*_: Any, **__: Any) -> list[Any]:
    shapes = ((2, 4), (4,), (4, 4), (4,))
    return [np.full((1, *shape), np.nan, np.float32) for shape in shapes]


def _no_trees(x: Any, y: Any, seed: int) -> tuple[list[trees.Tree], float]:
    root = {"leaf_value": float("nan"), "leaf_count": len(y)}
    return [trees._tree(root, len(y))], 1.0


@pytest.mark.parametrize(
    ("policy", "place", "broken"),
    [
        (NEURAL, "bandits.regressors.network._fit", _no_network),
        (TREES, "bandits.regressors.trees._grow", _no_trees),
    ],
    ids=["neural_linear", "trees_thompson"],
)
def test_numbers_that_are_not_finite_are_never_published(
    loop: Loop,
    policy: dict[str, Any],
    place: str,
    broken: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    campaign = launch(loop, policy)
    learnt(loop, campaign, 200)
    versions = len(snapshots(loop))
    monkeypatch.setattr(place, broken)
    assert retrain(loop.engine, campaign, backend="numpy") is None
    told = attempt(loop, campaign).error
    assert "invalid value" in told or "finite" in told
    assert len(snapshots(loop)) == versions
    learnt(loop, campaign, 10)
    assert verify(loop.engine, "spring", sample=10).holds


def test_one_retrains_while_others_serve_and_learn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = launch(loop, TREES)
    learnt(loop, campaign, 200)
    fitting, go_on, grow = threading.Event(), threading.Event(), trees._grow

    def slow(*arguments: Any) -> Any:
        fitting.set()
        assert go_on.wait(30)
        return grow(*arguments)

    monkeypatch.setattr(trees, "_grow", slow)
    done: list[Retrained | None] = []
    thread = threading.Thread(
        target=lambda: done.append(retrain(loop.engine, campaign, backend="numpy"))
    )
    thread.start()
    assert fitting.wait(30)
    assert retrain(loop.engine, campaign, backend="numpy") is None
    monkeypatch.setattr(retraining, "RETRY_SECONDS", 0.0)
    assert retrain(loop.engine, campaign, backend="numpy") is None, "another is at it"
    replies = learnt(loop, campaign, 30)
    assert {reply.reason for reply in replies} == {"policy"}
    version = loop.live.version
    assert snapshots(loop)[-1].retraining is None
    go_on.set()
    thread.join()
    (retrained,) = done
    assert retrained is not None
    assert (retrained.rows, retrained.version) == (200, version + 1)
    loop.carry()
    assert loop.live.learnt.trials.sum() == 230, "what was learnt meanwhile is counted"
    assert verify(loop.engine, "spring", sample=50).holds


def test_what_is_learnt_while_the_log_is_counted_is_counted_on_top(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = launch(loop, NEURAL)
    early = learnt(loop, campaign, 200)
    count = learner.rebuild

    def overtaken(*arguments: Any, **options: Any) -> Any:
        state = count(*arguments, **options)
        for reply in early[::4]:
            loop.outcome(reply, kind="returned")
        learnt(loop, campaign, 20)
        return state

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(learner, "rebuild", overtaken)
        meanwhile.setattr(learner, "CHUNK", 7)
        done = retrain(loop.engine, campaign, backend="numpy")
    assert done is not None
    assert snapshots(loop)[-2].retraining is None
    loop.carry()
    assert loop.live.learnt.trials.sum() == 220
    assert verify(loop.engine, "spring", sample=20).holds


KILLED = """
import sys, time
from bandits.regressors import trees
from service import db, retraining
def killed(*_):
    print("fitting", flush=True)
    time.sleep(60)
trees._grow = killed
retraining.retrain(db.engine(sys.argv[1]), int(sys.argv[2]), backend="numpy")
"""


@pytest.mark.crash
def test_a_retraining_that_is_killed_loses_nothing_and_is_taken_up_again(
    loop: Loop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = launch(loop, TREES)
    learnt(loop, campaign, 200)
    command = [sys.executable, "-c", KILLED, database_url, str(campaign)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "fitting\n"
        assert retrain(loop.engine, campaign, backend="numpy") is None, "another is at it"
        os.kill(child.pid, signal.SIGKILL)
    learnt(loop, campaign, 30)
    assert verify(loop.engine, "spring", sample=20).holds
    assert retrain(loop.engine, campaign, backend="numpy") is None, "not at once"
    monkeypatch.setattr(retraining, "RETRY_SECONDS", 0.0)
    told, fit = [], retraining._fit

    def again(*arguments: Any) -> Any:
        told.append(attempt(loop, campaign).error)
        return fit(*arguments)

    monkeypatch.setattr(retraining, "_fit", again)
    deadline, done = time.monotonic() + 10, None
    while done is None and time.monotonic() < deadline:
        # The server may take a moment to see that the killed process's connection is gone.
        done = retrain(loop.engine, campaign, backend="numpy")
    assert done is not None
    assert (done.number, done.rows) == (1, 230)
    assert told == ["the learner was killed at it"]
    assert attempt(loop, campaign).error is None
    loop.carry()
    assert loop.live.learnt.trials.sum() == 230
    assert verify(loop.engine, "spring", sample=230).holds


def test_the_learners_process_retrains_by_itself_and_stops_when_told(
    loop: Loop, config: Config
) -> None:
    campaign = launch(loop, NEURAL)
    command = [sys.executable, "-m", "service.cli", "learn"]
    environment = os.environ | config.environment()
    with subprocess.Popen(command, env=environment) as process:
        serve(loop, 220)
        deadline, retrained = time.monotonic() + 200, None
        while retrained is None and time.monotonic() < deadline:
            loop.carry()
            time.sleep(0.2)
            with loop.engine.connect() as connection:
                retrained = connection.scalar(select(func.max(Snapshot.retraining)))
        assert retrained == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert learner.learn(loop.engine, campaign, backend="numpy") is None
    assert verify(loop.engine, "spring", sample=50).holds
