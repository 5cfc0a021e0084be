"""The library's README is run, and names what there is."""

import doctest
from pathlib import Path

import bandits
from bandits import policies

README = Path(bandits.__file__).with_name("README.md")


def test_the_examples_run() -> None:
    assert doctest.testfile(str(README), module_relative=False).failed == 0


def test_every_module_and_policy_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    for path in README.parent.rglob("*.py"):
        if path.parent.name != "policies" and path.stem != "__init__":
            assert path.name in text, path
    for name in policies.NAMES:
        assert name in text
