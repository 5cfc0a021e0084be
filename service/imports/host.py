"""Reads the files that this host has taken in, one after the other, in a process of their own.

That process may die of a file without harm to anything else; see `service.imports.jobs.ATTEMPTS`.
"""

import os
import subprocess
import sys
import threading
import time

import structlog

from service.config import Config
from service.imports import jobs

LOOK_SECONDS = 0.5
RETRY_SECONDS = 1.0
LEFT_SECONDS = 60.0
TIDY_SECONDS = 600.0
PARENT = "BARTER_PARENT"
log = structlog.get_logger()


def run(config: Config, stop: threading.Event) -> None:
    """Look for files until stopped, and have them read; what is left over is tried now and then."""
    left: set[str] = set()
    tried = tidied = 0.0
    while not stop.wait(LOOK_SECONDS):
        if time.monotonic() - tidied > TIDY_SECONDS:
            jobs.tidy(config)
            tidied = time.monotonic()
        found = _files(config)
        if not found or (found <= left and time.monotonic() - tried < LEFT_SECONDS):
            continue
        try:
            status = _read(config, stop)
        except OSError as error:
            # No memory or no process to be had just now.
            log.warning("import_not_started", error=error.strerror)
            status = 1
        # What came while it read is not among those that it left.
        left, tried = _files(config) & found, time.monotonic()
        if status and not stop.is_set():
            log.warning("import_interrupted", status=status)
            left = set()
            stop.wait(RETRY_SECONDS)


def _files(config: Config) -> set[str]:
    return {path.name for path in jobs.folder(config).iterdir() if path.name.isdigit()}


def _read(config: Config, stop: threading.Event) -> int:
    """Start the reader and wait for it; end it when this process ends."""
    command = [sys.executable, "-m", "service.cli", "import", "waiting"]
    environment = os.environ | config.environment() | {PARENT: str(os.getpid())}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
        return process.returncode
