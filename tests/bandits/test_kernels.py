"""The compiled loops, beside the same in numpy."""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits import features, kernels
from bandits.types import FEATURE_LIMIT


@pytest.mark.parametrize("rows", [8, 9, 10, 11, 23])
@pytest.mark.parametrize("factors", [5, 9])
def test_scores_are_matrix_products_and_a_row_does_not_hang_on_others(
    factors: int, rows: int
) -> None:
    """Of lower triangular factors and of wider ones; of the last rows one, two or more are left."""
    rng = np.random.default_rng(0)
    x, mean = rng.normal(size=(rows, 5)), rng.normal(size=(5, 3))
    root = rng.normal(size=(3, 5, factors))
    root = np.tril(root) if factors == 5 else root
    flat = np.ascontiguousarray(root.transpose(1, 2, 0)).reshape(5, -1)
    out = np.empty((2, rows, 3))
    kernels.scores(x, mean, flat, 0.5, 2.0, out)
    np.testing.assert_allclose(out[0], x @ mean + 0.5, rtol=1e-13)
    wanted = 2.0 * np.linalg.norm(np.einsum("bp,apf->baf", x, root), axis=2)
    np.testing.assert_allclose(out[1], wanted, rtol=1e-13)
    for row in range(rows):
        alone = np.empty((2, 1, 3))
        kernels.scores(x[row : row + 1], mean, flat, 0.5, 2.0, alone)
        assert (alone[:, 0] == out[:, row]).all()


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=9), st.floats(0.1, 10))
def test_values_are_quantised_as_features_are(values: list[float], scale: float) -> None:
    given_values, centres = np.array(values), np.full(len(values), 0.25)
    scales, out = np.full(len(values), scale), np.zeros(len(values), np.int64)
    greatest = kernels.quantise(given_values, centres, scales, features.ONE, out)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.rint((given_values - 0.25) / scale * features.ONE)
    if np.isfinite(greatest):
        assert greatest == np.abs(exact).max(initial=0.0)
        assert (out == exact).all()
    else:
        assert not (np.abs(exact) < 2.0**53).all()


@settings(deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=9),
    st.floats(-9, 9), st.floats(1e-300, 10),
)  # fmt: skip
def test_columns_are_quantised_as_features_are(
    values: list[float], centre: float, scale: float
) -> None:
    """Whatever they are: what is not a number, or out of range, too."""
    columns = np.array([values, values[::-1]], dtype=np.float64)
    centres, scales = np.array([centre, 0.0]), np.array([scale, 1.0])
    out = np.full((len(values), 2), 7, dtype=np.int64)
    kernels.quantise_columns(columns, centres, scales, features.ONE, FEATURE_LIMIT, out)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = features.quantise((columns.T - centres) / scales)
    assert (out == wanted).all()


def test_what_no_disk_can_keep_is_compiled_all_the_same() -> None:
    """A function without a file has no place in a cache, as one whose folders are read-only."""
    made: dict[str, Any] = {}
    exec("def twice(x):\n    return 2.0 * x", made)
    assert kernels.compiled(made["twice"])(3.0) == 6.0


@pytest.mark.parametrize("ending", ["nbc", "nbi"])
def test_machine_code_that_is_damaged_or_cannot_be_kept_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (tmp_path / "looped.py").write_text("def twice(x):\n    return 2.0 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    twice = importlib.import_module("looped").twice
    assert kernels.compiled(twice)(3.0) == 6.0
    (kept,) = (tmp_path / "__pycache__").glob(f"looped.*.{ending}")
    kept.write_bytes(kept.read_bytes()[:40])
    with pytest.warns(UserWarning, match="is made anew"):
        assert kernels.compiled(twice)(3.0) == 6.0
    with warnings.catch_warnings():  # mended
        warnings.simplefilter("error")
        assert kernels.compiled(twice)(3.0) == 6.0
    for one in (tmp_path / "__pycache__").glob("looped.*.nb?"):
        one.unlink()
        if one.suffix == ".nbc":
            one.mkdir()  # nothing can be written there, as on a disk that is full
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert kernels.compiled(twice)(3.0) == 6.0
    sys.modules.pop("looped")


BITS = """
import hashlib
import numpy as np
from bandits import kernels
from bandits.posteriors import tabled

rng, found = np.random.default_rng(5), []
for arms in (2, 3, 10):
    mean, scale = rng.normal(size=(50, arms)), np.exp(rng.normal(0.0, 0.5, (50, arms)))
    found.append(tabled.shares(mean, scale, 700.0, np.ones((50, arms), bool), 1e-6).ravel())
out = np.empty((2, 50, 3))
x, mean = rng.normal(size=(50, 9)), rng.normal(size=(9, 3))
root = np.tril(rng.normal(size=(3, 9, 9))).transpose(1, 2, 0).reshape(9, 27).copy()
kernels.scores(x, mean, root, 0.5, 2.0, out)
print(hashlib.sha256(np.concatenate([*found, out.ravel()]).tobytes()).hexdigest())
"""


def test_bits_do_not_hang_on_the_machine(tmp_path: Path) -> None:
    """A processor without wide registers makes the same decisions as ours: logs are replayed."""
    told = [
        subprocess.run(
            [sys.executable, "-c", BITS], env=os.environ | more, capture_output=True, text=True,
            check=True,
        ).stdout
        for more in (
            {},
            {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
             "NUMBA_CACHE_DIR": str(tmp_path)},
        )
    ]  # fmt: skip
    assert told[0] == told[1] != ""
