"""The web workers of a host: their parent, which loads nothing of what they do.

All workers take connections from one socket (`service.listener`). One that ends is started again.
On SIGHUP each is replaced without a request that fails: its successor serves first, then the old
one takes no more connections, asks its clients to connect anew, and ends when they had time to.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog

import bandits
from service.listener import INHERITED

READY = "BARTER_READY"
"""The variable that tells a worker where to say that it serves: a file descriptor's number."""
RETIRE = signal.SIGUSR1
START_SECONDS = 60.0
"""How long a successor may take until it serves; after that the old worker ends all the same."""
RETIRE_SECONDS = 2.0
"""How long a client may keep a connection without asking anything, in a worker that retires."""
STOP_SECONDS = 8
"""How long requests that have begun may take when a worker ends."""
LOOK_SECONDS = 0.1
BACKOFF_SECONDS = 0.3
log = structlog.get_logger()


COMPILED = (Path(bandits.__file__).parent / "kernels.py", Path(__file__).parent / "sha256.py")
"""Modules whose functions are made machine code."""
COMPILE = """
import os
os.nice(5)
from bandits import kernels
from service.pseudonyms import Pseudonyms
kernels.prepare()
Pseudonyms(b"any").prepare()
"""


class Workers:
    """The parent of a number of workers."""

    def __init__(self, listener: socket.socket, count: int) -> None:
        self._listener = listener
        self._wake = threading.Event()
        self._stop = self._renew = False
        self._workers: list[subprocess.Popen[bytes]] = []
        self._count = count

    def run(self) -> None:
        """Keep the workers alive until SIGTERM or SIGINT; replace them on SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._workers = [self._start() for _ in range(self._count)]
        compiling = compile_ahead(*COMPILED)
        while not self._stop:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            if compiling is not None and compiling.poll() is not None:
                compiling = None
            for place, worker in enumerate(self._workers):
                if worker.poll() is not None and not self._stop:
                    log.warning("restarting", part="worker", status=worker.returncode)
                    time.sleep(BACKOFF_SECONDS)
                    self._workers[place] = self._start()
            if self._renew:
                self._renew = False
                for place in range(self._count):
                    self._replace(place)
        if compiling is not None:
            compiling.kill()
            compiling.wait()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            _ended(worker, STOP_SECONDS)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._renew = True
        else:
            self._stop = True
        self._wake.set()

    def _start(self, ready: int | None = None) -> subprocess.Popen[bytes]:
        """Start a worker; it writes to ``ready``, a file descriptor, once it serves."""
        environment = os.environ | {INHERITED: str(self._listener.fileno())}
        passed = [self._listener.fileno()]
        if ready is not None:
            environment[READY] = str(ready)
            passed.append(ready)
        command = [sys.executable, "-m", "service.cli", "worker"]
        return subprocess.Popen(command, env=environment, pass_fds=passed, stdin=subprocess.DEVNULL)

    def _replace(self, place: int) -> None:
        old = self._workers[place]
        ready, writing = os.pipe()
        self._workers[place] = self._start(writing)
        os.close(writing)
        deadline = time.monotonic() + START_SECONDS
        while not select.select([ready], [], [], LOOK_SECONDS)[0]:
            if self._stop or time.monotonic() > deadline:
                log.error("successor_not_serving", seconds=START_SECONDS)
                break
        os.close(ready)
        old.send_signal(RETIRE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            old.wait(0 if self._stop else RETIRE_SECONDS)
        old.terminate()
        _ended(old, STOP_SECONDS)


def compile_ahead(*modules: Path) -> subprocess.Popen[bytes] | None:
    """Have `COMPILED` compiled, in a process that yields, if they were not since they are there.

    The first worker that serves a campaign by contexts, or a long list, would do so, and take some
    seconds.
    """
    if all(map(_compiled, modules)):
        return None
    return subprocess.Popen([sys.executable, "-c", COMPILE], stdin=subprocess.DEVNULL)


def _compiled(module: Path) -> bool:
    """Tell whether machine code is kept of a module that is not older than it."""
    made = (module.parent / "__pycache__").glob(f"{module.stem}.*.nbi")
    return any(one.stat().st_mtime > module.stat().st_mtime for one in made)


def _ended(worker: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a worker has ended; one that takes too long is killed."""
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
