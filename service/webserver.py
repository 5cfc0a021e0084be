"""The web workers of a host, and their parent.

All workers take connections from one socket (`service.listener`). One that ends is started again.
On SIGHUP each is replaced without a request that fails: its successor serves first, then the old
one takes no more connections, asks its clients to connect anew, and ends when they had time to.
"""

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import structlog
import uvicorn
from flask import Flask

from service.gateway import Gateway
from service.hot import Route
from service.listener import INHERITED, MAX_CONNECTIONS
from service.protocol import IDLE_SECONDS, Protocol

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
SWEEP_SECONDS = 5.0
log = structlog.get_logger()


class Server(uvicorn.Server):
    """One worker: uvicorn, which says when it serves, retires, and closes silent connections."""

    def __init__(self, app: Flask, routes: dict[str, Route]) -> None:
        self._protocol: Any = Protocol.with_routes(routes)
        super().__init__(
            uvicorn.Config(
                Gateway(app), http=self._protocol, ws="none", lifespan="off", loop="uvloop",
                interface="asgi3", backlog=MAX_CONNECTIONS, log_config=None, access_log=False,
                server_header=False, proxy_headers=False, timeout_keep_alive=int(IDLE_SECONDS),
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(RETIRE, self._retire)
        if number := os.environ.get(READY):
            with contextlib.suppress(OSError):  # nobody may listen
                os.write(int(number), b".")
            os.close(int(number))

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections now and then; tell whether to end."""
        if counter % round(SWEEP_SECONDS / 0.1) == 0:
            now = asyncio.get_running_loop().time()
            for one in list(self.server_state.connections):
                if isinstance(one, Protocol) and one.overdue(now):
                    one.transport.close()
        return await super().on_tick(counter)

    def _retire(self) -> None:
        self._protocol.retiring = True
        for server in self.servers:
            server.close()


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
        while not self._stop:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            for place, worker in enumerate(self._workers):
                if worker.poll() is not None and not self._stop:
                    log.warning("restarting", part="worker", status=worker.returncode)
                    time.sleep(BACKOFF_SECONDS)
                    self._workers[place] = self._start()
            if self._renew:
                self._renew = False
                for place in range(self._count):
                    self._replace(place)
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


def _ended(worker: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a worker has ended; one that takes too long is killed."""
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def serve(app: Flask, routes: dict[str, Route], listener: socket.socket) -> None:
    """Be one worker until told to stop."""
    # Every connection is an open file, and many systems let a process have 1,024 unless it asks.
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    server = Server(app, routes)
    listener.setblocking(False)
    server.run(sockets=[listener])
