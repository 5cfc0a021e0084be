"""`barter serve`: the processes of one host, started together and kept alive.

PostgreSQL (embedded, unless DATABASE_URL names another), the web workers, the carrier and the
learner are processes of their own: a crash of one leaves the others serving, and it is started
again here. Should the supervisor itself be killed, they end: a new one finds the port free. Each is
a fresh interpreter, so that only the learner ever loads JAX.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from service import bundle, db, embedded, listener
from service.config import Config

READY_SECONDS = 60.0
BACKOFF_SECONDS = 0.3
STOP_SECONDS = 10.0
PARTS = ("web", "carry", "learn")
PARENT = "BARTER_PARENT"
ORPHAN_SECONDS = 0.5
log = structlog.get_logger()


@dataclass
class Part:
    """One child process and when it was last started."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = field(default=0.0)


class Barter:
    """All processes of one host; use it as a context, or call `start` and `stop`."""

    def __init__(self, config: Config, *, quiet: bool = False) -> None:
        self.config = config
        self.database_url = ""
        self._quiet = quiet
        self._parts = [Part(name) for name in PARTS]
        self._listener: socket.socket | None = None
        self._bundle: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def url(self) -> str:
        """Where the console and the API are."""
        host = self.config.host
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.config.port}"

    def pids(self) -> dict[str, int]:
        """Return the process ids of the parts that run."""
        return {part.name: part.process.pid for part in self._parts if part.process is not None}

    def start(self) -> None:
        """Start everything and wait until it is ready to decide.

        Raises:
            RuntimeError: the port is taken, or it was not ready within a minute.
        """
        self._listener = listener.bound(self.config)
        try:
            self.database_url = database_url(self.config)
            if self.config.database_url is None:
                db.migrate(self.database_url)
            self._listener.listen(listener.MAX_CONNECTIONS)
            for part in self._parts:
                self._launch(part)
            self._watcher.start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._bundle = bundle.prepare(self.config.data / "cache")

    def renew(self) -> None:
        """Replace the web workers one by one, each after its successor serves."""
        web = self.pids().get("web")
        if web is not None:
            os.kill(web, signal.SIGHUP)

    def stop(self) -> None:
        """Stop the parts, each after what it has begun, and the embedded database last."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if self._bundle is not None:
            self._bundle.wait()
        if self._listener is not None:
            self._listener.close()
        for part in self._parts:
            if part.process is not None:
                part.process.terminate()
        for part in self._parts:
            if part.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    part.process.wait(STOP_SECONDS)
                part.process.kill()
                part.process.wait()
        if self.config.database_url is None:
            embedded.stop(self.config)

    def __enter__(self) -> "Barter":
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def _launch(self, part: Part) -> None:
        environment = os.environ | self.config.environment() | {PARENT: str(os.getpid())}
        passed: tuple[int, ...] = ()
        if part.name == "web" and self._listener is not None:
            passed = (self._listener.fileno(),)
            environment[listener.INHERITED] = str(passed[0])
        silent = subprocess.DEVNULL if self._quiet else None
        part.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", part.name],
            env=environment, pass_fds=passed,
            stdin=subprocess.DEVNULL, stdout=silent, stderr=silent,
        )  # fmt: skip
        part.started_at = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(BACKOFF_SECONDS):
            for part in self._parts:
                if part.process is not None and part.process.poll() is not None:
                    log.warning("restarting", part=part.name, status=part.process.returncode)
                    try:
                        self._launch(part)
                    except OSError:
                        # No memory or no process to be had just now: the next look tries again.
                        log.exception("part_not_restarted", part=part.name)
            if self.config.database_url is None:
                try:
                    embedded.ensure(self.config)
                except Exception:
                    log.exception("database_not_restarted")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if _answers(f"{self.url}/readyz"):
                return
            time.sleep(0.05)
        raise RuntimeError(
            f"Barter was not ready at {self.url} within {READY_SECONDS:g} s; "
            "is the port free? Set BARTER_PORT to another."
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def database_url(config: Config) -> str:
    """Return where the database is, having started the embedded one where that is used."""
    return config.database_url or embedded.start(config)


def when_orphaned(parent: int, end: Callable[[], object]) -> None:
    """Call ``end`` once this process is no longer a child of ``parent``, which has died then."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def until_signalled() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()

    previous = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
    if parent := os.environ.get(PARENT):
        when_orphaned(int(parent), stop.set)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def follow(
    url: str, wake: threading.Event, stop: threading.Event, *, only: str | tuple[str, ...] = ""
) -> None:
    """Set an event whenever the database announces something (prefixes narrow it down)."""

    def listen() -> None:
        for payload in db.listen(url, "barter", stop=stop):
            # An empty payload means that something may have been missed.
            if not payload or payload.startswith(only):
                wake.set()

    threading.Thread(target=listen, name="listener", daemon=True).start()
