"""A state's file: it comes back whole, says what it is, and says why where it cannot be read."""

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest

from bandits import artefact, features, ledger, policies
from bandits.types import FEATURE_LIMIT, ArmSums, Batch, Contexts


def _learnt() -> ArmSums:
    rng = np.random.default_rng(0)
    return ArmSums(*(rng.integers(-9, 9, (2, 3)) for _ in ArmSums._fields))


def _first_release(state: ArmSums) -> bytes:
    header = {"fields": list(state._fields), "shape": [2, 3], "type": "<i8"}
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"BLEDGER1" + struct.pack("<I", len(text)) + text
    body += b"".join(field.astype("<i8").tobytes() for field in state)
    return body + hashlib.sha256(body).digest()


def _resealed(data: bytes, old: bytes, new: bytes) -> bytes:
    body = data[:-32].replace(old, new)
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("name", policies.NAMES)
def test_every_policys_state_comes_back(name: str) -> None:
    policy = policies.make(name, arms=3, segments=2, features=2)
    state = policy.init()
    data = artefact.to_bytes(state, policy=name)
    again = artefact.from_bytes(data, like=state)
    assert artefact.digest(again) == artefact.digest(state)
    assert artefact.describe(data)["policy"] == name
    assert b"pickle" not in data


def test_a_ledger_of_the_first_release_is_still_read() -> None:
    state = _learnt()
    again = artefact.from_bytes(_first_release(state), like=ledger.zeros(segments=2, arms=3))
    assert artefact.digest(again) == artefact.digest(state)


def test_it_says_why_it_cannot_be_read() -> None:
    state = _learnt()
    data = artefact.to_bytes(state, policy="ucb1")
    wrong: list[tuple[str, bytes, Any]] = [
        ("not an artefact", b"PK\x03\x04" + data, state),
        ("damaged", data[:-1] + bytes([data[-1] ^ 1]), state),
        ("format 9", _resealed(data, b'"format":2', b'"format":9'), state),
        ("shape", data, ledger.zeros(segments=3, arms=3)),
        ("type", data, ArmSums(*(x.astype(float) for x in state))),
        ("holds", _resealed(data, b'"trials"', b'"trails"'), state),
    ]
    for match, damaged, like in wrong:
        with pytest.raises(ValueError, match=match):
            artefact.from_bytes(damaged, like=like)


def test_features_are_quantised_within_half_a_step_and_bounded() -> None:
    x = np.random.default_rng(0).normal(size=(100, 4))
    assert np.abs(features.values(features.quantise(x)) - x).max() <= 0.5 / features.ONE
    edge = features.quantise(np.array([1e9, -np.inf, np.nan]))
    assert edge.tolist() == [FEATURE_LIMIT, -FEATURE_LIMIT, 0]
    with pytest.raises(ValueError, match="within"):
        features.check(np.full((1, 1), 1 << 20), rows=1, width=1)
    with pytest.raises(TypeError, match="int64"):
        features.check(np.zeros((1, 1)), rows=1, width=1)
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        features.check(np.zeros((1, 1), np.int64), rows=1, width=2)


@pytest.mark.parametrize("name", ["trees_thompson", "neural_linear"])
def test_what_two_states_share_is_kept_once(name: str) -> None:
    policy = policies.make(name, arms=3, segments=2, features=2)
    base = policy.init()
    one = np.ones(4, np.int64)
    contexts = Contexts(np.zeros(4, np.int32), np.full((4, 2), features.ONE))
    state = policy.update(
        base, Batch(contexts, np.zeros(4, np.int32), np.full((4, 3), 1 / 3), one, one, one)
    )
    whole, shared = (artefact.to_bytes(part, policy=name) for part in (state, base))
    short = artefact.without(whole, shared)
    fitted = {"trees_thompson": "value", "neural_linear": "weights"}[name]
    assert len(short) < len(whole) - getattr(base, fitted).nbytes
    assert artefact.completed(short, shared) == whole == artefact.completed(whole, shared)
    with pytest.raises(ValueError, match="holds"):
        artefact.from_bytes(short, like=base)
    with pytest.raises(ValueError, match="another base"):
        artefact.completed(short, whole)
