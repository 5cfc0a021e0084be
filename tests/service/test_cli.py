"""The command line: what the README tells to type works, and mistakes are explained."""

import re
import shlex
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from service import cli
from service.config import Config
from service.models import ApiKey, User
from tests.loop import running

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def environment(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)


def readme_commands() -> list[str]:
    lines = re.findall(r"^\.venv/bin/barter (.+?)(?:\s{2,}#.*)?$", README.read_text(), re.M)
    return [*lines, *re.findall(r"`barter ([a-z]+)", README.read_text())]


def test_the_readme_types_commands_that_exist() -> None:
    found = readme_commands()
    assert len(found) >= 4
    known = cli.parser()
    for line in found:
        words = shlex.split(line)
        if len(words) > 1:
            assert callable(known.parse_args(words).function)
        else:
            assert f" {words[0]} " in known.format_help()


@pytest.mark.parametrize(
    "command", ["serve", "migrate", "user", "key", "verify", "demo", "web", "carry", "learn"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    told = capsys.readouterr().out
    assert len(told.splitlines()) > 3


@pytest.mark.usefixtures("environment")
def test_people_and_keys_are_added(
    engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARTER_PASSWORD", "correct horse battery")
    assert cli.main(["migrate"]) == 0
    assert cli.main(["user", "add", "Ana@shop.example", "--role", "marketer"]) == 0
    assert cli.main(["key", "add", "checkout", "--scope", "decide", "--scope", "reward"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^bk_live_[a-z0-9]{8}_\S{40,}$", shown, re.M)
    with engine.connect() as connection:
        assert connection.execute(select(User.email, User.role)).all() == [
            ("ana@shop.example", "marketer")
        ]
        assert connection.scalar(select(ApiKey.scopes)) == ["decide", "reward"]
    assert cli.main(["user", "add", "ana@shop.example"]) == 2
    assert "barter: " in capsys.readouterr().err


@pytest.mark.usefixtures("environment")
def test_a_campaign_is_verified(
    config: Config, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(config, engine) as loop:
        campaign = loop.launch()
        loop.shop(50)
        loop.carry()
        loop.learn(campaign)
    assert cli.main(["verify", "spring", "--sample", "20"]) == 0
    assert "20 decisions replayed, 0 differ" in capsys.readouterr().out
    assert cli.main(["verify", "autumn"]) == 2


def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_folder: Path
) -> None:
    monkeypatch.setenv("BARTER_DATA", str(data_folder))
    monkeypatch.setenv("BARTER_PORT", "eighty")
    assert cli.main(["serve"]) == 2
    assert "BARTER_PORT" in capsys.readouterr().err
