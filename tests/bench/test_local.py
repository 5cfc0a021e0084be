"""The benchmark of decisions in the caller's process, with few requests."""

import pytest

from tests.bench import local


@pytest.mark.slow
def test_no_answer_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert local.main(["--requests", "600", "--http", "60", "--rounds", "2"]) == 0
    assert " 0 differ; the server took all: yes" in capsys.readouterr().out
