"""One web worker: uvicorn with our protocol in front and Flask behind it."""

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


def serve(app: Flask, routes: dict[str, Route], listener: socket.socket) -> None:
    """Be one worker until told to stop."""
    # Every connection is an open file, and many systems let a process have 1,024 unless it asks.
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    server = Server(app, routes)
    listener.setblocking(False)
    server.run(sockets=[listener])
