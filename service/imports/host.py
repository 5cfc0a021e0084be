"""Reads the files that this host has taken in, one after the other, in a process of their own.

That process may die of a file without harm to anything else; see `service.imports.jobs.ATTEMPTS`.
"""

import os
import subprocess
import sys
import threading

import structlog

from service.config import Config
from service.imports import jobs

LOOK_SECONDS = 0.5
RETRY_SECONDS = 1.0
PARENT = "BARTER_PARENT"
log = structlog.get_logger()


def run(config: Config, stop: threading.Event) -> None:
    """Look for files until stopped, and have them read."""
    while not stop.wait(LOOK_SECONDS):
        if any(path.name.isdigit() for path in jobs.folder(config).iterdir()):
            status = _read(config, stop)
            if status and not stop.is_set():
                log.warning("import_interrupted", status=status)
                stop.wait(RETRY_SECONDS)


def _read(config: Config, stop: threading.Event) -> int:
    """Start the reader and wait for it; end it when this process ends."""
    command = [sys.executable, "-m", "service.cli", "import", "waiting"]
    environment = os.environ | config.environment() | {PARENT: str(os.getpid())}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
        return process.returncode
