"""Settings are read once, checked, and refused by name."""

import os
import stat
import threading
from pathlib import Path

import pytest

from service.config import Config, ConfigError


def test_defaults(data_folder: Path) -> None:
    config = Config.from_env({"BARTER_DATA": str(data_folder)})
    assert (config.host, config.port, config.workers) == ("127.0.0.1", 8080, 2)
    assert config.database_url is None
    assert config.data == data_folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "{}"}, "{}/.local/share/barter"),
        ({"HOME": "/nowhere", "XDG_DATA_HOME": "{}/xdg"}, "{}/xdg/barter"),
        ({"HOME": "{}", "XDG_DATA_HOME": "relative"}, "{}/.local/share/barter"),
    ],
)
def test_folder_of_an_ordinary_user(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config = Config.from_env({k: v.format(data_folder) for k, v in variables.items()})
    assert str(config.data) == expected.format(data_folder)
    assert stat.S_IMODE(config.data.stat().st_mode) == 0o700


def test_data_folder_is_made_for_its_owner_only(data_folder: Path) -> None:
    made = Config.from_env({"BARTER_DATA": str(data_folder / "a" / "b")}).data
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE((made / "secret.key").stat().st_mode) == 0o600


def test_open_data_folder_is_refused_and_left_alone(data_folder: Path) -> None:
    data_folder.chmod(0o755)
    (data_folder / "somebody's").touch()
    with pytest.raises(ConfigError, match=r"BARTER_DATA.*mode 0755.*chmod 700"):
        Config.from_env({"BARTER_DATA": str(data_folder)})
    assert stat.S_IMODE(data_folder.stat().st_mode) == 0o755


def test_secret_is_made_once_whoever_comes_first(data_folder: Path) -> None:
    found: list[bytes] = []
    start = threading.Barrier(8)

    def read() -> None:
        start.wait()
        found.append(Config.from_env({"BARTER_DATA": str(data_folder)}).secret)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 64
    assert sorted(path.name for path in data_folder.iterdir()) == ["secret.key"]


def test_readable_secret_is_refused(data_folder: Path) -> None:
    Config.from_env({"BARTER_DATA": str(data_folder)})
    (data_folder / "secret.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"BARTER_SECRET.*chmod 600"):
        Config.from_env({"BARTER_DATA": str(data_folder)})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BARTER_PORT", "0"),
        ("BARTER_PORT", "65536"),
        ("BARTER_PORT", "http"),
        ("BARTER_PORT", "٨٠"),
        ("BARTER_WORKERS", "-1"),
        ("BARTER_WORKERS", "1e3"),
        ("BARTER_ACKNOWLEDGE", "maybe"),
        ("BARTER_KEEP_DAYS", "7"),
        ("BARTER_SECRET", "short"),
        ("DATABASE_URL", "mysql://db/shop"),
    ],
)
def test_a_wrong_value_is_refused_by_name(data_folder: Path, variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: ") as raised:
        Config.from_env({"BARTER_DATA": str(data_folder), variable: value})
    assert raised.value.variable == variable


def test_nothing_secret_is_printed(data_folder: Path) -> None:
    secret, password = "s" * 40, "hunter2hunter2"
    environ = {
        "BARTER_DATA": str(data_folder),
        "BARTER_SECRET": secret,
        "DATABASE_URL": f"postgres://ann:{password}@db/shop",
    }
    shown = repr(Config.from_env(environ))
    assert secret not in shown
    assert password not in shown
    with pytest.raises(ConfigError) as raised:
        Config.from_env(environ | {"DATABASE_URL": f"mysql://ann:{password}@db/shop"})
    assert password not in str(raised.value)


def test_a_child_gets_the_same_configuration(data_folder: Path) -> None:
    config = Config.from_env({"BARTER_DATA": str(data_folder), "BARTER_PORT": "9000",
                              "BARTER_ACKNOWLEDGE": "database"})  # fmt: skip
    assert Config.from_env(config.environment()) == config


def test_keys_differ_by_label_and_by_secret(data_folder: Path) -> None:
    one = Config(data=data_folder, secret=b"a" * 32)
    other = Config(data=data_folder, secret=b"b" * 32)
    keys = {one.key("cookie"), one.key("cursor"), other.key("cookie"), other.key("cursor")}
    assert len(keys) == 4
    assert one.key("cookie") == Config(data=Path("/"), secret=b"a" * 32).key("cookie")
