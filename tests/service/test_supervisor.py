"""The supervisor leaves nothing behind when it cannot start."""

import socket
from dataclasses import replace

import pytest

from service.config import Config
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
    processes = [part.process for part in barter._parts]
    assert all(process is not None and process.poll() is not None for process in processes)
