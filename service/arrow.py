"""Requests and replies as tables of Arrow (IPC streams): no text to write or to read.

A table has a row per request: ``campaign`` and ``unit``, ``request_id``, ``product``,
``exclude_arms`` and ``products`` where they are wanted, and every further column is an attribute. A
null, or a number that is none (NaN), is unknown. Columns of text may be dictionary-encoded.

pyarrow takes 26 MB and 70 to 100 ms to import, so a web worker does so with the first such request.
"""

import datetime as dt
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service import bulk, columns
from service.columns import Column, Columns, Numbers, Words
from service.definition import MAX_ATTRIBUTES, has_control
from service.errors import BarterError, FieldError, Invalid, Malformed, UnknownCampaign, in_list
from service.messages import DecisionRequest
from service.runtime import Runtime
from service.snapshots import LiveCampaign
from service.validation import printable, validate

MEDIA: Final = "application/vnd.apache.arrow.stream"
MAX_ROWS = 10_000
MAX_BYTES = 32 << 20
MAX_NAME, MAX_TEXT, MAX_NUMBER = 200, 500, 2.0**53
SINGLE = ("request_id", "product", "exclude_arms", "products")
"""Columns whose requests are looked at one by one."""
_END = b"\xff\xff\xff\xff\0\0\0\0"


class Asked(NamedTuple):
    """A table of requests: which campaign each row is about, its unit, and its attributes."""

    keys: Sequence[str]
    campaign: NDArray[np.int32]
    units: Sequence[str]
    attributes: Columns
    single: dict[int, DecisionRequest]


def answer(runtime: Runtime, raw: bytes) -> bulk.Answers:
    """Decide about every row of a table, durably; see `service.bulk.answer`.

    Raises:
        Malformed, Invalid: it is no such table; nothing is kept.
        UnknownCampaign, IdempotencyConflict: as there.
    """
    import pyarrow as pa

    try:
        asked, now = read(raw), dt.datetime.now(dt.UTC)
    except pa.ArrowException:
        raise Malformed("The table has a column that cannot be read.") from None
    requests: dict[int, Any] = dict(asked.single)
    made = []
    for place, campaign in enumerate(_campaigns(runtime, asked)):
        rows = np.flatnonzero(asked.campaign == place)
        usual = rows[[row not in asked.single for row in rows.tolist()]] if asked.single else rows
        if not len(usual):
            continue
        batch = None
        if bulk.plain(campaign):
            wanted = campaign.definition.reads
            told = {name: _taken(one, usual) for name, one in asked.attributes.items()
                    if name in wanted}  # fmt: skip
            units = [asked.units[row] for row in usual.tolist()]
            batch = bulk.decided(runtime, campaign, units, told, now)
        if batch is not None:
            made.append((usual.tolist(), batch))
        else:
            requests |= {row: _request(asked, row, {}) for row in usual.tolist()}
    return bulk.kept(runtime, requests, made, sorted(requests), now)


def _campaigns(runtime: Runtime, asked: Asked) -> list[LiveCampaign]:
    found = []
    for place, key in enumerate(asked.keys):
        campaign = runtime.catalogue.campaign(key)
        if campaign is None:
            row = int(np.argmax(asked.campaign == place))
            raise UnknownCampaign(printable(key), row)
        found.append(campaign)
    return found


def _taken(column: Column, rows: NDArray[np.intp]) -> Column:
    if isinstance(column, Numbers):
        return Numbers(column.values[rows], column.known[rows])
    return Words(column.codes[rows], column.words)


def read(raw: bytes) -> Asked:
    """Return the requests of a stream.

    Raises:
        Malformed: it is not a whole stream of Arrow, or compressed.
        Invalid: a column is missing, or holds what its field does not take.
    """
    table = _table(raw)
    for name in ("campaign", "unit"):
        if name not in table.column_names:
            raise _invalid(name, f"is required; the table has {_listed(table.column_names)}")
    units = texts(table, "unit")
    words = _words("campaign", table.column("campaign"), MAX_NAME)
    if (missing := _first(words.codes < 0)) is not None:
        raise _invalid("campaign", "is required", missing)
    used, campaign = np.unique(words.codes, return_inverse=True)
    keys = [str(words.words[code]) for code in used.tolist()]
    names = [one for one in table.column_names if one not in ("campaign", "unit", *SINGLE)]
    if len(names) > MAX_ATTRIBUTES:
        raise _invalid("attributes", f"are {len(names)} columns; send at most {MAX_ATTRIBUTES}")
    attributes = dict(attributes_of(table, names))
    asked = Asked(keys, campaign.astype(np.int32), units, attributes, {})
    for row, fields in _single(table).items():
        asked.single[row] = _request(asked, row, fields)
    return asked


def _table(raw: bytes) -> Any:
    import pyarrow as pa

    if not raw.endswith(_END):
        raise Malformed(
            "The body is not a whole stream of Arrow: its end is missing. Close the writer"
            " before you send what it wrote."
        )
    try:
        for message in pa.ipc.MessageReader.open_stream(raw):
            if _compressed(message):
                raise Malformed("The stream is compressed; write it without compression.")
        batches, rows = [], 0
        with pa.ipc.open_stream(raw) as reader:
            for batch in reader:
                rows += batch.num_rows
                if rows > MAX_ROWS:
                    raise Invalid(
                        f"The table has more than {MAX_ROWS:,} rows; send the rest apart.",
                        errors=[FieldError("", f"must have at most {MAX_ROWS:,} rows")],
                    )
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
        table.validate(full=True)
        twice = {name for name in table.column_names if table.column_names.count(name) > 1}
        if twice:
            raise _invalid(printable(min(twice)), "is there twice; rename or remove one column")
        if not rows:
            raise Invalid("The table is empty.", errors=[FieldError("", "must have a row")])
        return table.unify_dictionaries().combine_chunks()
    except (pa.ArrowException, OSError, ValueError, IndexError, struct.error) as error:
        if isinstance(error, BarterError):
            raise
        raise Malformed("The body is not a stream of Arrow, or it was damaged.") from None


def _compressed(message: Any) -> bool:
    """Tell whether a message's buffers are compressed: a few bytes could stand for gigabytes.

    By the tables of its header (Message.fbs of Arrow): flatbuffers, which say where each field is.
    """
    if message.type not in ("record batch", "dictionary"):
        return False
    header = bytes(message.metadata)
    batch = _field(header, struct.unpack_from("<I", header)[0], 2)
    if message.type == "dictionary" and batch is not None:
        batch = _field(header, batch, 1)
    return batch is None or _field(header, batch, 3) is not None


def _field(header: bytes, table: int, number: int) -> int | None:
    """Return where the table lies that a field of a table refers to, if it has that field."""
    fields = table - struct.unpack_from("<i", header, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", header, fields)[0]:
        return None
    offset = struct.unpack_from("<H", header, fields + slot)[0]
    if not offset:
        return None
    place: int = table + offset + struct.unpack_from("<I", header, table + offset)[0]
    return place


def attributes_of(table: Any, names: Sequence[str]) -> Iterator[tuple[str, Column]]:
    """Yield the columns of a table that are attributes.

    Raises:
        Invalid: one is of a type, or holds a value, that attributes do not take.
    """
    import pyarrow as pa

    for name in names:
        if not name or len(name) > MAX_NAME or has_control(name):
            raise _invalid(
                printable(name), f"must have 1 to {MAX_NAME} characters, none of control"
            )
        column = table.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            yield name, _numbers(name, column)
        elif pa.types.is_boolean(kind):
            codes = column.cast(pa.bool_()).cast(pa.int32()).fill_null(-1)
            yield name, Words(codes.to_numpy(), (False, True))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            yield name, _words(name, column, MAX_TEXT)
        elif not pa.types.is_null(kind):
            raise _invalid(
                printable(name), f"is of the type {kind}; send numbers, text or booleans"
            )


def _numbers(name: str, column: Any) -> Numbers:
    import pyarrow as pa

    if column.type == pa.float64() and len(column) and not column.null_count:
        plain = column.to_numpy()
        # Neither of NaN nor of what is beyond is this true; then it is looked at closely.
        if np.abs(plain).max() <= MAX_NUMBER:
            return Numbers(plain, np.ones(len(plain), dtype=bool))
    try:
        values = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
    except pa.ArrowInvalid:
        raise _invalid(printable(name), "must be within ±2**53") from None
    known = ~np.isnan(values)
    if (wrong := _first(known & ~(np.abs(values) <= MAX_NUMBER))) is not None:
        raise _invalid(printable(name), "must be within ±2**53", wrong, attribute=True)
    return Numbers(np.where(known, values, 0.0), known)


def _words(name: str, column: Any, most: int) -> Words:
    """Return a column of text, each distinct text once."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _invalid(name, f"is of the type {kind}; send text")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.DictionaryArray) else whole.chunk(0)
    words = whole.dictionary.to_pylist()
    # A dictionary may hold a null itself; its codes mean that nothing is known.
    places = np.array([-1 if word is None else place for place, word in enumerate(words)] + [-1])
    indices = whole.indices.cast(pa.int64()).fill_null(len(words))
    codes = places[indices.to_numpy(zero_copy_only=False)]
    for place, word in enumerate(words):
        if word is not None and (len(word) > most or has_control(word)):
            text = f"must have at most {most} characters, none of control"
            raise _invalid(printable(name), text, _first(codes == place), attribute=most > MAX_NAME)
    return Words(codes.astype(np.int32), words)


def texts(table: Any, name: str) -> list[str]:
    """Return a column of text that every row must have.

    Raises:
        Invalid: it is of another type, or a row has none, or one that is not printable.
    """
    import pyarrow as pa

    column = table.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _invalid(name, f"is of the type {kind}; send text")
    found: list[str] = column.cast(pa.large_string()).to_pylist()
    # Of nulls the length is unknown, which is neither of these.
    lengths = list(map(len, found)) if not column.null_count else [0]
    if not (min(lengths) > 0 and max(lengths) <= MAX_NAME):
        row = next(row for row, text in enumerate(found) if not text or len(text) > MAX_NAME)
        raise _invalid(name, f"is required, with at most {MAX_NAME} characters", row)
    if has_control("".join(found)):
        row = next(row for row, text in enumerate(found) if has_control(text))
        raise _invalid(name, "must not contain control characters", row)
    return found


def _single(table: Any) -> dict[int, dict[str, Any]]:
    """Return the fields of requests that are looked at one by one, by row."""
    found: dict[int, dict[str, Any]] = {}
    for name in SINGLE:
        if name in table.column_names:
            for row, value in enumerate(table.column(name).to_pylist()):
                if value is not None and value != []:
                    found.setdefault(row, {})[name] = value
    return found


def _request(asked: Asked, row: int, fields: dict[str, Any]) -> DecisionRequest:
    document = {
        "campaign": asked.keys[asked.campaign[row]],
        "unit": asked.units[row],
        "attributes": columns.at(asked.attributes, row),
        **fields,
    }
    try:
        return validate(DecisionRequest, document)
    except Invalid as error:
        error.errors = tuple(
            FieldError(in_list(one.field, row), one.message) for one in error.errors
        )
        raise
    except TypeError:
        raise _invalid("request_id", "and product must be text", row) from None


def _first(wrong: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(wrong)) if wrong.any() else None


def _invalid(name: str, text: str, row: int | None = None, *, attribute: bool = False) -> Invalid:
    field = f"attributes.{name}" if attribute else name
    field = field if row is None else in_list(field, row)
    return Invalid(f"{field}: {text}.", errors=[FieldError(field, text)])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 40) for name in names[:10])
    return shown or "no columns"


def written(answers: bulk.Answers) -> bytes:
    """Return replies as a stream: a row each, in the order of the requests."""
    import pyarrow as pa

    made = table_of(answers)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    out: bytes = sink.getvalue().to_pybytes()
    return out


def table_of(answers: bulk.Answers) -> Any:
    """Return replies as a table: a row each, in the order of the requests."""
    import pyarrow as pa

    rows = len(answers.ids)
    offsets = np.arange(0, (rows + 1) * bulk.ID_TEXT, bulk.ID_TEXT, dtype=np.int32)
    ids = pa.StringArray.from_buffers(
        rows, pa.py_buffer(offsets), pa.py_buffer(answers.id_texts().tobytes())
    )
    kinds = answers.kinds
    product = pa.struct([("product_id", pa.string()), ("percent", pa.float64())])
    same: dict[str, Any] = {
        "snapshot": pa.array([one.snapshot for one in kinds], pa.int64()),
        "expires_at": pa.array([one.expires_at for one in kinds], pa.timestamp("us", "UTC")),
        "products": pa.array([orjson.loads(one.products) for one in kinds], pa.list_(product)),
    }
    if any(one.late for one in kinds):
        named = ["disk" if one.late else None for one in kinds]
        same["acknowledged"] = pa.array(named, pa.string())
    taken = pa.array(answers.told)
    return pa.table(
        {
            "decision_id": ids,
            **{name: _named(answers, name) for name in ("campaign", "arm", "offer")},
            "propensity": pa.array(answers.propensity),
            **{name: _named(answers, name) for name in ("reason", "segment")},
            **{name: values.take(taken) for name, values in same.items()},
        }
    )


def _named(answers: bulk.Answers, name: str) -> Any:
    """Return a text that many replies share, dictionary-encoded."""
    import pyarrow as pa

    places: dict[str, int] = {}
    codes = []
    for one in answers.kinds:
        text = getattr(one, name)
        text = text.decode() if isinstance(text, bytes) else text
        codes.append(places.setdefault(text, len(places)))
    index = np.array(codes, dtype=np.int32)[answers.told]
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(list(places), pa.string()))
