"""The socket on which a host is asked: one for all web workers, which outlives each of them.

The supervisor opens it and hands it on. What arrives while a worker is replaced, or while all of
them start anew after a crash, waits in the socket's queue for the next one that is free, instead
of being refused or reset as with a socket per worker.
"""

import os
import socket

from service.config import Config

INHERITED = "BARTER_LISTENER"
"""The variable that tells a child the number of the socket's file descriptor."""
MAX_CONNECTIONS = 4096
"""How many connections may wait to be taken (the kernel may allow fewer), or be in one worker."""


def bound(config: Config) -> socket.socket:
    """Return the host's socket, which nobody can connect to before `socket.listen`.

    Raises:
        RuntimeError: the port is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    made = socket.socket(family)
    try:
        # Connections of a server that has ended do not keep the port; one that runs does.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((config.host, config.port))
    except OSError as error:
        made.close()
        raise RuntimeError(
            f"Barter cannot listen on {config.host}:{config.port} ({error.strerror});"
            " set BARTER_PORT to a free port."
        ) from error
    return made


def inherited(config: Config) -> socket.socket:
    """Return the socket that the supervisor handed on, or one of our own where it did not."""
    number = os.environ.get(INHERITED)
    made = bound(config) if number is None else socket.socket(fileno=int(number))
    made.listen(MAX_CONNECTIONS)
    return made
