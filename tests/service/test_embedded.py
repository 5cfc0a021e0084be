"""The embedded PostgreSQL starts anywhere, comes back from anything, and lets nobody else in."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service import embedded
from service.config import Config
from tests.conftest import folder

SECRET = b"tests only: thirty-two bytes or more"
IS_ROOT = os.geteuid() == 0
STRANGER = 54400  # an account that nobody has

START = """
import os, sys
from pathlib import Path
from service import embedded
from service.config import Config

config = Config(data=Path(sys.argv[1]), secret=b"x" * 32)
embedded.status(config)  # what is imported late is imported before rights are given up
if sys.argv[2:]:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
url = embedded.start(config)
print(embedded.status(config).pid, os.geteuid(), url, flush=True)
"""


@pytest.fixture
def fresh(data_folder: Path) -> Iterator[Config]:
    """An empty data folder; if it gets a server, that is stopped at the end."""
    config = Config(data=data_folder, secret=SECRET)
    yield config
    embedded.stop(config)


@pytest.fixture(scope="module")
def shared() -> Iterator[Config]:
    """One server for the tests that leave it as they found it, or dead."""
    with folder() as path:
        config = Config(data=path, secret=SECRET)
        yield config
        embedded.stop(config)


@pytest.fixture
def cluster(shared: Config) -> Config:
    """A server that runs."""
    embedded.ensure(shared)
    return shared


def pid_of(config: Config) -> int:
    pid = embedded.status(config).pid
    assert pid is not None
    return pid


def kill(config: Config) -> None:
    pid = pid_of(config)
    os.kill(pid, signal.SIGKILL)
    while embedded.status(config).pid == pid:
        time.sleep(0.01)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner(config: Config) -> int:
    return (config.data / "postgres").stat().st_uid


def test_start_again_and_stop(fresh: Config) -> None:
    assert embedded.status(fresh) == embedded.Status(False, None, None)
    url = embedded.start(fresh)
    first = embedded.status(fresh)
    assert first.running
    assert first.version is not None
    assert int(first.version.split(".")[0]) >= 15
    assert embedded.start(fresh) == embedded.ensure(fresh) == url
    assert embedded.status(fresh) == first
    with psycopg.connect(url) as connection:
        shown = connection.execute(
            "SELECT current_user, current_database(), usesuper,"
            " current_setting('fsync'), current_setting('synchronous_commit'),"
            " current_setting('listen_addresses'), current_setting('data_checksums'), lower('É')"
            " FROM pg_user WHERE usename = current_user"
        ).fetchone()
    assert shown == ("barter", "barter", False, "on", "on", "", "on", "é")
    embedded.stop(fresh)
    assert embedded.status(fresh) == embedded.Status(False, None, None)
    embedded.stop(fresh)


def test_nobody_else_gets_in(cluster: Config) -> None:
    assert mode(cluster.data) == (0o710 if IS_ROOT else 0o700)
    for private in (cluster.data / "postgres", cluster.data / "run"):
        assert mode(private) == 0o700
        assert private.stat().st_uid == (owner(cluster) if IS_ROOT else os.geteuid())
    assert owner(cluster) != 0
    if IS_ROOT:
        attempt = subprocess.run(
            ["ls", cluster.data / "run"],
            user=STRANGER, group=STRANGER, extra_groups=[], capture_output=True, check=False,
        )  # fmt: skip
        assert attempt.returncode != 0


@pytest.mark.crash
def test_committed_rows_survive_a_kill(cluster: Config) -> None:
    url = embedded.ensure(cluster)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (n int)")
        connection.execute("INSERT INTO rows SELECT generate_series(1, 100)")
    unfinished = psycopg.connect(url)
    unfinished.execute("INSERT INTO rows VALUES (101)")
    kill(cluster)
    assert embedded.ensure(cluster) == url
    unfinished.close()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM rows").fetchone() == (100,)


@pytest.mark.crash
def test_a_recycled_process_id_does_not_hinder(cluster: Config) -> None:
    kill(cluster)
    account = owner(cluster)
    # Under the server's own account: PostgreSQL ignores other accounts' processes by itself.
    bystander = subprocess.Popen(["sleep", "600"], user=account if IS_ROOT else None, cwd="/")
    try:
        for left in (
            cluster.data / "postgres/postmaster.pid",
            cluster.data / "run/.s.PGSQL.5432.lock",
        ):
            left.write_text(f"{bystander.pid}\n{left.read_text().split(chr(10), 1)[1]}")
        embedded.ensure(cluster, timeout_seconds=20)
        assert pid_of(cluster) != bystander.pid
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.crash
@pytest.mark.parametrize("content", ["", "12345", "rubbish\n\n"])
def test_a_damaged_pid_file_does_not_hinder(cluster: Config, content: str) -> None:
    kill(cluster)
    (cluster.data / "postgres/postmaster.pid").write_text(content)
    embedded.ensure(cluster, timeout_seconds=20)


def test_a_lost_socket_is_made_again(cluster: Config) -> None:
    before = pid_of(cluster)
    for left in (cluster.data / "run").iterdir():
        left.unlink()
    embedded.ensure(cluster, timeout_seconds=30)
    assert pid_of(cluster) != before


def test_three_starters_at_once_end_with_one_server(fresh: Config) -> None:
    command = [sys.executable, "-c", START, str(fresh.data)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {starter.communicate(timeout=60)[0] for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert len(said) == 1
    assert said.pop().startswith(f"{pid_of(fresh)} ")


@pytest.mark.crash
def test_a_starter_killed_in_the_middle_leaves_nothing_broken(fresh: Config) -> None:
    starter = subprocess.Popen([sys.executable, "-c", START, str(fresh.data)])
    while not list(fresh.data.glob("postgres.new-*/global")):
        assert starter.poll() is None
        time.sleep(0.005)
    starter.kill()
    starter.wait()
    embedded.start(fresh, timeout_seconds=30)
    with psycopg.connect(embedded.ensure(fresh)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_works_as_an_ordinary_user(data_folder: Path) -> None:
    config = Config(data=data_folder, secret=SECRET)
    account, ordinary = [], os.geteuid()
    script = START
    if IS_ROOT:
        # The programs may lie where only root may look; a user's own would not.
        packaged = embedded._packaged_programs()
        embedded._copy_programs(packaged, data_folder / "site")
        reachable = data_folder / "site" / packaged.relative_to(packaged.parents[2])
        script = START.replace(
            "embedded.status(config)  #",
            f"embedded._packaged_programs = lambda: Path({str(reachable)!r})\n"
            "embedded.status(config)  #",
        )
        ordinary = embedded._named_uid()
        os.chown(data_folder, ordinary, ordinary)
        account = [str(ordinary)]
    command = [sys.executable, "-c", script, str(data_folder), *account]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        expected = ordinary
        assert done.stdout.split()[1] == str(expected)
        assert owner(config) == expected
        assert mode(data_folder) == 0o700
    finally:
        embedded.stop(config)


@pytest.mark.skipif(not IS_ROOT, reason="only root's server has another account than its caller")
class TestAsRoot:
    def test_a_closed_parent_is_named_and_left_alone(self, data_folder: Path) -> None:
        inner = data_folder / "data"
        inner.mkdir(mode=0o700)
        with pytest.raises(embedded.EmbeddedError, match=rf"BARTER_DATA.*{data_folder}.*/var/lib"):
            embedded.start(Config(data=inner, secret=SECRET))
        assert mode(data_folder) == 0o700

    def test_programs_out_of_the_accounts_reach_are_copied(
        self, cluster: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        packaged = embedded._packaged_programs()
        embedded._copy_programs(packaged, closed)
        hidden = closed / packaged.relative_to(packaged.parents[2])
        monkeypatch.setattr(embedded, "_packaged_programs", lambda: hidden)
        embedded.stop(cluster)
        embedded.start(cluster)
        assert len(list(cluster.data.glob("postgres.programs-*/*/*/bin/postgres"))) == 1
        kill(cluster)
        embedded.ensure(cluster)

    def test_a_link_in_the_servers_folder_is_not_written_through(
        self, cluster: Config, tmp_path: Path
    ) -> None:
        kill(cluster)
        precious = tmp_path / "precious"
        precious.write_text("1\n2\n")
        pid_file = cluster.data / "postgres/postmaster.pid"
        pid_file.unlink()
        pid_file.symlink_to(precious)
        with pytest.raises((OSError, embedded.EmbeddedError)):
            embedded.ensure(cluster, timeout_seconds=5)
        assert precious.read_text() == "1\n2\n"
        pid_file.unlink()


def test_a_path_too_long_for_a_socket(data_folder: Path) -> None:
    deep = data_folder / ("x" * 100)
    data_folder.chmod(0o711)
    deep.mkdir(mode=0o700)
    config = Config(data=deep, secret=SECRET)
    short = embedded._socket_folder(deep)
    try:
        with psycopg.connect(embedded.start(config)) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert mode(short) == 0o700
    finally:
        embedded.stop(config)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(short)


def test_the_callers_environment_does_not_steer_it(
    cluster: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOST": "nowhere.invalid", "PGPORT": "1", "PGUSER": "nobody", "PGDATABASE": "none",
        "PGDATA": "/nowhere", "LC_ALL": "xx_YY", "HOME": "", "TMPDIR": "/nowhere",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    embedded.stop(cluster)
    with psycopg.connect(embedded.start(cluster)) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("barter",)


def test_another_major_release_is_refused(cluster: Config) -> None:
    embedded.stop(cluster)
    release = cluster.data / "postgres/PG_VERSION"
    ours = release.read_text()
    try:
        release.write_text("14\n")
        with pytest.raises(embedded.EmbeddedError, match="made by PostgreSQL 14"):
            embedded.start(cluster)
    finally:
        release.write_text(ours)
