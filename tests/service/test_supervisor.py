"""The supervisor leaves nothing behind, neither when it cannot start nor when it is killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bandits import kernels
from service import workers
from service.config import Config
from service.pseudonyms import Pseudonyms
from service.supervisor import Barter


@pytest.mark.slow
def test_a_start_that_fails_leaves_no_process_behind(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    away = "postgresql://nobody@127.0.0.1:1/away"
    monkeypatch.setattr("service.supervisor.READY_SECONDS", 1.0)
    barter = Barter(replace(config, database_url=away, port=port), quiet=True)
    with pytest.raises(RuntimeError, match="not ready"):
        barter.start()
    wait_until(lambda: running(config.data) == [])


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_supervisor_takes_its_parts_along_and_starts_again(config: Config) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | replace(config, port=port).environment()
    command = [sys.executable, "-m", "service.cli", "serve"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: answers(port))
        assert len(running(config.data)) >= 5
        child.send_signal(number)
        child.wait()
        wait_until(lambda: running(config.data) == [])


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_kernels_are_compiled_ahead_once(tmp_path: Path) -> None:
    kernels.prepare()
    Pseudonyms(b"any").prepare()
    assert workers.compile_ahead(*workers.COMPILED) is None
    (tmp_path / "kernels.py").touch()
    (tmp_path / "__pycache__").mkdir()
    kept = tmp_path / "__pycache__" / "kernels.best-1.py311.nbi"
    kept.touch()
    os.utime(kept, (1, 1))  # of an earlier release
    made = workers.compile_ahead(workers.COMPILED[1], tmp_path / "kernels.py")
    assert made is not None
    assert made.wait(60) == 0


def test_who_compiled_ahead_is_gone_when_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling = subprocess.Popen(["true"])
    monkeypatch.setattr(workers, "compile_ahead", lambda *_: compiling)
    told = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = {one: signal.getsignal(one) for one in told}
    gone = []

    def stop_once_gone() -> None:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{compiling.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        gone.append(not Path(f"/proc/{compiling.pid}").exists())
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_once_gone, daemon=True)
    try:
        with socket.socket() as listener:
            serving = workers.Workers(listener, 0)
            watcher.start()
            serving.run()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert gone == [True], "no process that has ended waits to be asked after"


def running(data: Path) -> list[int]:
    """Return the processes of Barter's command line that have this data folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = b"service.cli" in (process / "cmdline").read_bytes()
            if ours and f"BARTER_DATA={data}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until(what: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
