"""The parent of the web workers: Granian, with two things that it lacks.

All workers take connections from one socket (`service.listener`), and on SIGHUP each is replaced
without a request that fails: its successor serves first, then the old one takes no more
connections, asks its clients to connect anew, and ends when they had time to.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any, cast

import structlog
from granian._granian import SocketHolder
from granian.server.mp import MPServer

from service.listener import INHERITED, MAX_CONNECTIONS

RETIRE = signal.SIGUSR1
START_SECONDS = 60.0
"""How long a successor may take until it serves; after that the old worker ends all the same."""
RETIRE_SECONDS = 2.0
"""How long a client may keep a connection without asking anything, in a worker that retires."""
SERVING = multiprocessing.Event()
"""What a worker, which is forked, sets once it serves."""
log = structlog.get_logger()


class SharedServer(MPServer):
    """Granian's server on a socket that is there already, with workers that retire."""

    listener: socket.socket

    def _init_shared_socket(self) -> None:
        self.listener.set_inheritable(True)
        self.listener.setblocking(False)
        number, holder = self.listener.fileno(), cast(Any, SocketHolder)
        os.environ[INHERITED] = str(number)
        self._ssp, self._sso = None, self.listener
        vars(self).update(_sfd=number, _shd=holder(number, False, MAX_CONNECTIONS))

    def _respawn_workers(
        self, workers: list[int], spawn_target: Any, target_loader: Any, delay: float = 0
    ) -> None:
        for index in workers:
            self.respawned_wrks[index] = time.monotonic()
            SERVING.clear()
            old: Any = self.wrks[index]
            new: Any = self._spawn_worker(index, spawn_target, target_loader)
            new.start()
            self.wrks[index] = new
            if old.is_alive():
                self._retire(old)
        self._metrics.incr_spawn(len(workers))

    def _retire(self, old: Any) -> None:
        if not SERVING.wait(START_SECONDS):
            log.error("successor_not_serving", seconds=START_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(old.inner.pid, RETIRE)
        old.join(RETIRE_SECONDS)
        old.terminate()
        old.join(self.workers_kill_timeout)
        if old.is_alive():
            old.kill()
            old.join()


def take_no_more() -> None:
    """Have this worker take no more connections; those that it has, it keeps.

    Its event loops forget the listening socket, which stays open: the other workers take from it.
    """
    numbers = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    opened = {number: _opened(number) for number in numbers}
    listening = _opened(int(os.environ[INHERITED]))
    for number in numbers:
        if opened[number] == "anon_inode:[eventpoll]":
            for one in numbers:
                if opened[one] == listening:
                    _forget(number, one)


def _opened(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def _forget(loop: int, listening: int) -> None:
    # The duplicate is closed with the object; the loop's own number stays.
    epoll = select.epoll.fromfd(os.dup(loop))
    with contextlib.closing(epoll), contextlib.suppress(OSError):
        epoll.unregister(listening)
