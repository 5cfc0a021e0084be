"""Rows out of a file that anybody may have made: CSV in any common form, or Parquet.

A file is read as a stream: memory does not grow with it. What is wrong with one row is a `Damage`
of that row; what makes the rest unreadable, or the file something else, is a `BadFile`.
"""

import codecs
import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

MAX_COLUMNS = 500
MAX_LINE = 1 << 20
MAX_CELL = 10_000
SAMPLE = 1 << 16
MOST_NULS = 3
PARQUET_ROWS = 5_000
ROW_GROUP_BYTES = 1 << 30
DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = ("utf-8", "cp1252", "latin-1", "utf-16")
FORMATS = ("csv", "parquet")
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"%PDF": "a PDF; export the data as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"SQLite format 3": "a SQLite database; export a table as CSV",
}
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class BadFile(ValueError):
    """A file that cannot be read on; the message follows "The file"."""


class Damage(NamedTuple):
    """What is wrong with one row that cannot be split into its cells."""

    message: str


class Row(NamedTuple):
    """One row: the line that it ends on (of Parquet its number), its cells or what is wrong."""

    line: int
    cells: Sequence[Any] | Damage


class Table(NamedTuple):
    """An open file: its header, its rows, and how far it has been read, 0 to 1."""

    header: tuple[str, ...]
    rows: Iterator[Row]
    progress: Callable[[], float]


@contextmanager
def opened(
    path: Path, *, encoding: str = "utf-8", suits: Callable[[str], bool] = bool
) -> Iterator[Table]:
    """Open a file of either format, which its first bytes tell.

    ``suits`` tells whether a column's name is one of those looked for: it decides between
    delimiters. Raises `BadFile`.
    """
    with path.open("rb") as file:
        head = file.read(SAMPLE)
        _check_magic(head)
        file.seek(0)
        if head[:4] == b"PAR1":
            yield _parquet(path)
        else:
            yield _csv(file, head, encoding, suits, path.stat().st_size)


def format_of(head: bytes) -> str:
    """Return the format of a file by its first bytes; raises `BadFile` where it is neither."""
    _check_magic(head)
    return "parquet" if head[:4] == b"PAR1" else "csv"


def _check_magic(head: bytes) -> None:
    if not head.strip():
        raise BadFile("is empty")
    for magic, told in _MAGIC.items():
        if head.startswith(magic):
            raise BadFile(f"is {told}")
    binary = head[:1024].count(0) > MOST_NULS
    if binary and head[:4] != b"PAR1" and head[:2] not in _MARKS:
        raise BadFile("is no text: it holds NUL bytes; export the data as CSV or Parquet")


# ---------------------------------------------------------------- CSV


def _csv(
    file: IO[bytes], head: bytes, encoding: str, suits: Callable[[str], bool], size: int
) -> Table:
    encoding = _MARKS.get(head[:2], encoding)
    lines = _lines(file, encoding)
    first = next(lines, "").removeprefix("\ufeff")
    if not first.strip():
        raise BadFile("begins with an empty line; its first line must name the columns")
    if any(map(_undecoded, first)):
        raise BadFile(f"is not {encoding}; save it as UTF-8, or say which encoding it has")
    delimiter = _delimiter(first, suits)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    header = tuple(str(column).strip() for column in next(_guarded(reader)).cells)
    _check_header(header)
    return Table(header, _cells(reader, header), lambda: min(file.tell() / max(size, 1), 1.0))


def _check_header(header: Sequence[str]) -> None:
    if len(header) > MAX_COLUMNS:
        raise BadFile(f"has {len(header):,} columns; at most {MAX_COLUMNS} are read")
    lower = [column.lower() for column in header if column]
    twice = sorted({column for column in lower if lower.count(column) > 1})
    if twice:
        raise BadFile(f"names the column {twice[0]!r} twice; rename or remove one")


def _lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Yield lines, none longer than a megabyte; what does not decode comes as lone surrogates."""
    if encoding == "utf-16":
        yield from _wide_lines(file)
        return
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            raise BadFile(f"has a line of more than {MAX_LINE:,} bytes; is it CSV?")
        yield line.decode(encoding, "surrogateescape")


def _wide_lines(file: IO[bytes]) -> Iterator[str]:
    decoder, rest = codecs.getincrementaldecoder("utf-16")("replace"), ""
    while block := file.read(SAMPLE):
        *whole, rest = (rest + decoder.decode(block)).split("\n")
        yield from (line + "\n" for line in whole)
        if len(rest) > MAX_LINE:
            raise BadFile(f"has a line of more than {MAX_LINE:,} characters; is it CSV?")
    if rest:
        yield rest


def _delimiter(first: str, suits: Callable[[str], bool]) -> str:
    """Return what splits the first line into the most columns that are looked for."""

    def score(delimiter: str) -> tuple[int, int]:
        columns = next(csv.reader([first], delimiter=delimiter))
        return sum(suits(column.strip()) for column in columns), len(columns)

    return max(DELIMITERS, key=score)


def _guarded(reader: Any) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)
    try:
        for cells in reader:
            yield Row(reader.line_num, cells)
    except csv.Error:
        raise BadFile(
            f"cannot be read on after line {reader.line_num:,}: a quote that opens does not close"
        ) from None


def _cells(reader: Any, header: tuple[str, ...]) -> Iterator[Row]:
    width, again = len(header), [column.lower() for column in header]
    for row in _guarded(reader):
        cells = row.cells
        if not cells:
            continue  # an empty line says nothing, and is nothing
        told = "".join(cells)
        if len(cells) != width:
            damage = f"has {len(cells)} cells where the header has {width}"
            if len(cells) == 1:
                damage += "; is it split by another character?"
            yield Row(row.line, Damage(damage))
        elif not told.isascii() and any(map(_undecoded, told)):
            yield Row(row.line, Damage("holds bytes of another encoding than the rest"))
        elif "\0" in told:
            yield Row(row.line, Damage("holds a NUL character"))
        elif [cell.strip().lower() for cell in cells] == again:
            yield Row(row.line, Damage("repeats the header"))
        else:
            yield row


def _undecoded(character: str) -> bool:
    return "\udc80" <= character <= "\udcff" or character == "\ufffd"


# ---------------------------------------------------------------- Parquet


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError):
        raise BadFile("calls itself Parquet but is damaged, or was not sent whole") from None
    header = tuple(file.schema_arrow.names)
    _check_header(header)
    nested = [one.name for one in file.schema_arrow if pa.types.is_nested(one.type)]
    if nested:
        raise BadFile(f"holds lists or records in the column {nested[0]!r}; flatten them")
    meta = file.metadata
    for number in range(meta.num_row_groups):
        if meta.row_group(number).total_byte_size > ROW_GROUP_BYTES:
            raise BadFile("has a row group of more than 1 GiB; write it in smaller row groups")
    # Texts stay as they are stored, each value once: a few bytes can stand for gigabytes.
    texts = [one.name for one in file.schema_arrow if pa.types.is_string(one.type)]
    file = pq.ParquetFile(path, read_dictionary=texts)
    state = {"rows": 0}

    def rows() -> Iterator[Row]:
        try:
            for batch in file.iter_batches(PARQUET_ROWS):
                _check_lengths(batch)
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    state["rows"] += 1
                    yield Row(state["rows"], cells)
        except (pa.ArrowException, OSError):
            raise BadFile(f"is damaged after row {state['rows']:,}") from None

    return Table(header, rows(), lambda: state["rows"] / max(meta.num_rows, 1))


def _check_lengths(batch: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary if pa.types.is_dictionary(column.type) else column
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            continue
        longest = pc.max(pc.binary_length(values)).as_py()
        if longest is not None and longest > MAX_CELL:
            raise BadFile(f"holds a value of {longest:,} bytes in the column {name!r}")
