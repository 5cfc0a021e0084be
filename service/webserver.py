"""One web worker: uvicorn with our protocol in front and Flask behind it.

All workers of a host take connections from one socket, and whichever is quickest to wake would take
all of a client that opens a few: then one core works and the others look on. So who has connections
already waits the longer the more it has, at most `PATIENCE_SECONDS`, before it takes others.
"""

import asyncio
import contextlib
import os
import resource
import socket
from typing import Any

import structlog
import uvicorn
from flask import Flask

from service.gateway import Gateway
from service.hot import Route
from service.listener import MAX_CONNECTIONS
from service.protocol import IDLE_SECONDS, Protocol
from service.workers import READY, RETIRE, STOP_SECONDS

SWEEP_SECONDS = 5.0
PATIENCE_SECONDS = 0.003
REST_SECONDS = 0.1
"""How long a worker rests that could not take a connection, as it has too many files open."""
log = structlog.get_logger()


class Server(uvicorn.Server):
    """One worker: uvicorn, which says when it serves, retires, and closes silent connections."""

    def __init__(self, app: Flask, routes: dict[str, Route]) -> None:
        self._protocol: Any = Protocol.with_routes(routes)
        self._listeners: list[socket.socket] = []
        self._taking: set[asyncio.Task[Any]] = set()
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
        await super().startup([])
        self._listeners = list(sockets or [])
        for listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._ready, listener)
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and end those that there are."""
        self._close()
        await super().shutdown(sockets)

    def _ready(self, listener: socket.socket) -> None:
        """Take connections, or let others be quicker who have fewer."""
        own, loop = len(self.server_state.connections), asyncio.get_running_loop()
        if own == 0 and self._take(listener, 1):
            return
        loop.remove_reader(listener)
        # The loop counts milliseconds. A burst is taken in a few turns, each worker its part.
        wait = min(0.001 * own.bit_length(), PATIENCE_SECONDS) if own else REST_SECONDS
        loop.call_later(wait, self._take_late, listener, 1 + own // 2)

    def _take_late(self, listener: socket.socket, most: int) -> None:
        loop = asyncio.get_running_loop()
        if listener not in self._listeners:
            return
        if self._take(listener, most):
            loop.add_reader(listener, self._ready, listener)
        else:
            loop.call_later(REST_SECONDS, self._take_late, listener, most)

    def _take(self, listener: socket.socket, most: int) -> bool:
        """Take connections; tell whether that could be done."""
        loop = asyncio.get_running_loop()
        try:
            for _ in range(most):
                taken, _ = listener.accept()
                taken.setblocking(False)
                task = loop.create_task(loop.connect_accepted_socket(self._connection, taken))
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)
        except BlockingIOError:
            pass  # somebody was quicker
        except OSError as error:
            log.error("connection_not_taken", error=str(error))
            return False
        return True

    def _connection(self) -> Protocol:
        made: Protocol = self._protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )  # fmt: skip
        return made

    def _retire(self) -> None:
        self._protocol.retiring = True
        self._close()

    def _close(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        self._listeners = []


def serve(app: Flask, routes: dict[str, Route], listener: socket.socket) -> None:
    """Be one worker until told to stop."""
    # Every connection is an open file, and many systems let a process have 1,024 unless it asks.
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    server = Server(app, routes)
    listener.setblocking(False)
    server.run(sockets=[listener])
