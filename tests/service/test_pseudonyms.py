"""Units and their pseudonyms, one by one and in long lists."""

import hmac
import os
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import pseudonyms, sha256
from service.pseudonyms import WIDE_BYTES, WIDE_ROWS, Pseudonyms, Units, pseudonym, split
from service.sha256 import LANES, LONGEST

LENGTHS = [1, 32, 64, 65, 200]


@pytest.mark.parametrize("length", LENGTHS)
def test_pseudonyms_are_hmac_sha256(length: int) -> None:
    key = os.urandom(length)
    hidden = Pseudonyms(key)
    for unit in ("", "ana", "ünït" * 50):
        assert hidden(unit) == pseudonym(key, unit)


@pytest.mark.parametrize("length", LENGTHS)
def test_long_lists_have_the_same(length: int) -> None:
    """Of every length that a block has room for, in any place of a group."""
    key, rng = os.urandom(length), random.Random(length)
    hidden = Pseudonyms(key)
    hidden.prepare()
    for rows in (WIDE_ROWS, WIDE_ROWS + 1, WIDE_ROWS + LANES - 1, 1000):
        names = [rng.randbytes(60).hex()[: rng.randint(0, LONGEST)] for _ in range(rows)]
        names[: LONGEST + 1] = ["\x7f" * size for size in range(LONGEST + 1)]
        names[-2:] = ["ü" * 27, "\0" * LONGEST]
        found = split(hidden.many(Units.of(names)))
        assert found == [hmac.digest(key, one.encode(), "sha256")[:16] for one in names]


def test_what_is_too_long_or_not_ready_is_hashed_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert WIDE_BYTES == LONGEST
    hidden = Pseudonyms(b"key")
    names = [f"u{n}" for n in range(WIDE_ROWS)]
    wanted = [hidden(one) for one in names]
    hidden.expect(WIDE_ROWS - 1)
    assert hidden._preparing is None, "short lists need none of it"
    hidden.expect(WIDE_ROWS)
    assert split(hidden.many(Units.of(names))) == wanted
    deadline = time.monotonic() + 60
    while hidden._wide is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hidden._wide is not None
    assert split(hidden.many(Units.of(names))) == wanted
    text, starts = Units.of(names)
    assert split(hidden.many(Units(text.copy(), starts))) == wanted
    made: Any = sha256._hmacs
    assert len(made.signatures) == 1, "it is compiled once"
    long = [*names, "x" * (WIDE_BYTES + 1)]
    assert split(hidden.many(Units.of(long))) == [*wanted, hidden(long[-1])]
    # Where it cannot be had all goes on.
    broken = Pseudonyms(b"key")
    monkeypatch.delattr("service.sha256.Hmac")
    broken.prepare()
    assert broken._wide is None
    assert split(broken.many(Units.of(names))) == wanted


@settings(deadline=None)
@given(st.lists(st.text(max_size=9), max_size=20))
@example([])
@example(["", "ä", "\U0001f600"])
def test_units_are_the_names_that_they_were_made_of(names: list[str]) -> None:
    units = Units.of(names)
    assert len(units) == len(names)
    assert [units.at(row) for row in range(len(names))] == names
    rows = np.arange(len(names))[::2]
    taken = units.taken(rows)
    assert [taken.at(row) for row in range(len(taken))] == names[::2]
    assert pseudonyms.split(Pseudonyms(b"k").many(units)) == [pseudonym(b"k", n) for n in names]
