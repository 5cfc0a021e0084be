"""Requests and replies as tables of Arrow (IPC streams): no text to write or to read.

A table has a row per request: ``campaign`` and ``unit``, ``request_id``, ``product``,
``exclude_arms`` and ``products`` where they are wanted, and every further column is an attribute. A
null, or a number that is none (NaN), is unknown. Columns of text may be dictionary-encoded.

pyarrow takes 26 MB and 70 to 100 ms to import, so a web worker does so with the first such request.
"""

import datetime as dt
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service import bulk, columnar, columns
from service.columns import Column, Columns, Numbers, Words
from service.definition import MAX_ATTRIBUTES, has_control
from service.errors import BarterError, FieldError, Invalid, Malformed, UnknownCampaign, in_list
from service.messages import DecisionRequest
from service.pseudonyms import Units
from service.runtime import Runtime
from service.snapshots import LiveCampaign
from service.validation import printable, validate

MEDIA: Final = "application/vnd.apache.arrow.stream"
MAX_ROWS = 10_000
MAX_BYTES = 32 << 20
MAX_NAME, MAX_TEXT, MAX_NUMBER = 200, 500, columns.MOST
SINGLE = ("request_id", "product", "exclude_arms", "products")
"""Columns whose requests are looked at one by one."""
_END = b"\xff\xff\xff\xff\0\0\0\0"


class Asked(NamedTuple):
    """A table of requests: which campaign each row is about, its unit, and its attributes."""

    keys: Sequence[str]
    campaign: NDArray[np.int64]
    units: Units
    attributes: Columns
    single: dict[int, DecisionRequest]


def answer(runtime: Runtime, raw: bytes) -> bulk.Answers:
    """Decide about every row of a table, durably; see `service.bulk.answer`.

    Raises:
        Malformed, Invalid: it is no such table; nothing is kept.
        UnknownCampaign, IdempotencyConflict: as there.
    """
    asked, now = _asked(raw), dt.datetime.now(dt.UTC)
    made, single = _decided(runtime, asked, now)
    requests: dict[int, Any] = dict(asked.single)
    requests |= {row: _request(asked, row, {}) for row in single}
    return bulk.kept(runtime, requests, made, sorted(requests), now)


def plainly(runtime: Runtime, raw: bytes) -> bulk.Worked:
    """Do what `answer` does; None, and nothing is kept, where a row is looked at by itself.

    Raises:
        BarterError: as there; nothing is kept.
    """
    asked = _asked(raw)
    if asked.single:
        return None
    made, single = _decided(runtime, asked, dt.datetime.now(dt.UTC))
    return None if single else bulk.keep_and_write(runtime, made, written)


def _asked(raw: bytes) -> Asked:
    import pyarrow as pa

    try:
        return read(raw)
    except pa.ArrowException:
        raise Malformed("The table has a column that cannot be read.") from None


def _decided(
    runtime: Runtime, asked: Asked, now: dt.datetime
) -> tuple[list[tuple[bulk.Places, bulk.Batch]], list[int]]:
    """Decide about all rows that can be decided together; return those, and which can not."""
    made: list[tuple[bulk.Places, bulk.Batch]] = []
    others: list[int] = []
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
            batch = bulk.decided(runtime, campaign, asked.units.taken(usual), told, now)
        if batch is not None:
            made.append((usual, batch))
        else:
            others += usual.tolist()
    return made, others


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
    if len(rows) == len(column.known):
        return column
    if isinstance(column, Numbers):
        return Numbers(column.values[rows], column.known[rows], column.sound)
    return Words(column.codes[rows], column.words)


def read(raw: bytes) -> Asked:
    """Return the requests of a stream.

    Raises:
        Malformed: it is not a whole stream of Arrow, or compressed.
        Invalid: a column is missing, or holds what its field does not take.
    """
    batch = _batch(raw)
    arrays = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
    for name in ("campaign", "unit"):
        if name not in arrays:
            raise _invalid(name, f"is required; the table has {_listed(list(arrays))}")
    units = texts("unit", arrays.pop("unit"))
    words = _words("campaign", arrays.pop("campaign"), MAX_NAME)
    if (missing := _first(words.codes < 0)) is not None:
        raise _invalid("campaign", "is required", missing)
    used, _, campaign = columns.distinct(words.codes.astype(np.int64), len(words.words))
    keys = [str(words.words[code]) for code in used.tolist()]
    single = {name: arrays.pop(name) for name in SINGLE if name in arrays}
    if (count := len(arrays)) > MAX_ATTRIBUTES:
        raise _invalid("attributes", f"are {count} columns; send at most {MAX_ATTRIBUTES}")
    asked = Asked(keys, campaign, units, attributes_of(arrays), {})
    for row, fields in _single(single).items():
        asked.single[row] = _request(asked, row, fields)
    return asked


def _batch(raw: bytes) -> Any:
    """Return all rows of a stream as one batch."""
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
                batch.validate(full=True)
                batches.append(batch)
            names = reader.schema.names
        if len(set(names)) < len(names):
            twice = min(name for name in names if names.count(name) > 1)
            raise _invalid(printable(twice), "is there twice; rename or remove one column")
        if not rows:
            raise Invalid("The table is empty.", errors=[FieldError("", "must have a row")])
        if len(batches) > 1:
            table = pa.Table.from_batches(batches).unify_dictionaries()
            batches = table.combine_chunks().to_batches()
        return batches[0]
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


def attributes_of(arrays: Mapping[str, Any]) -> dict[str, Column]:
    """Return arrays of Arrow that are attributes, by name; without those of the type null.

    Raises:
        Invalid: one is of a type, or holds a value, that attributes do not take.
    """
    import pyarrow as pa

    made: dict[str, Column] = {}
    for name, array in arrays.items():
        if not name or len(name) > MAX_NAME or has_control(name):
            raise _invalid(
                printable(name), f"must have 1 to {MAX_NAME} characters, none of control"
            )
        kind = _kind(array)
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            made[name] = _numbers(name, array)
        elif pa.types.is_boolean(kind):
            codes = array.cast(pa.bool_()).cast(pa.int32()).fill_null(-1)
            made[name] = Words(codes.to_numpy(), (False, True))
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            made[name] = _words(name, array, MAX_TEXT)
        elif not pa.types.is_null(kind):
            raise _invalid(
                printable(name), f"is of the type {kind}; send numbers, text or booleans"
            )
    return made


def _kind(array: Any) -> Any:
    """Return the type of an array's values, also where each is told once."""
    import pyarrow as pa

    return array.type.value_type if isinstance(array, pa.DictionaryArray) else array.type


def _numbers(name: str, array: Any) -> Numbers:
    import pyarrow as pa

    if array.type == pa.float64() and len(array) and not array.null_count:
        plain = columns.numbers(array.to_numpy())
        if plain.sound:  # else it has a NaN, or is beyond, and is looked at closely
            return plain
    try:
        values = array.cast(pa.float64()).fill_null(np.nan).to_numpy()
    except pa.ArrowInvalid:
        raise _invalid(printable(name), "must be within ±2**53") from None
    known = ~np.isnan(values)
    if (wrong := _first(known & ~(np.abs(values) <= MAX_NUMBER))) is not None:
        raise _invalid(printable(name), "must be within ±2**53", wrong, attribute=True)
    return Numbers(np.where(known, values, 0.0), known)


def _words(name: str, array: Any, most: int) -> Words:
    """Return an array of text, each distinct text once."""
    import pyarrow as pa

    kind = _kind(array)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _invalid(name, f"is of the type {kind}; send text")
    if not isinstance(array, pa.DictionaryArray):
        array = array.dictionary_encode()
    words, indices = array.dictionary.to_pylist(), array.indices
    if indices.null_count or None in words:
        # A dictionary may hold a null itself; its codes mean that nothing is known.
        places = [-1 if word is None else place for place, word in enumerate(words)]
        indices = indices.cast(pa.int64()).fill_null(len(words))
        codes = np.array([*places, -1], dtype=np.int32)[indices.to_numpy()]
    else:
        codes = indices.to_numpy().astype(np.int32)
    for place, word in enumerate(words):
        if word is not None and (len(word) > most or has_control(word)):
            text = f"must have at most {most} characters, none of control"
            raise _invalid(printable(name), text, _first(codes == place), attribute=most > MAX_NAME)
    return Words(codes, words)


def texts(name: str, array: Any) -> Units:
    """Return an array of text that every row must have.

    Raises:
        Invalid: it is of another type, or a row has none, or one that is not printable.
    """
    import pyarrow as pa

    kind = _kind(array)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _invalid(name, f"is of the type {kind}; send text")
    if array.type != pa.string():
        array = array.cast(pa.large_string())
    if not array.null_count and len(array):
        _, places, letters = array.buffers()
        wide = np.int32 if array.type == pa.string() else np.int64
        found = np.frombuffer(places, wide)[array.offset : array.offset + len(array) + 1]
        starts: NDArray[np.int64] = found.astype(np.int64)
        text = np.frombuffer(letters or b"", np.uint8)
        sizes, used = np.diff(starts), text[starts[0] : starts[-1]]
        # Letters are of one byte or more, and those of control are below the blank.
        if sizes.min() > 0 and sizes.max() <= MAX_NAME and used.min() >= ord(" "):
            return Units(text, starts)
    return _looked_at(array.to_pylist(), name)


def _looked_at(found: list[str | None], name: str) -> Units:
    """Return texts that are sound though they do not look so at once; raises `Invalid`."""
    for row, text in enumerate(found):
        if not text or len(text) > MAX_NAME:
            raise _invalid(name, f"is required, with at most {MAX_NAME} characters", row)
        if has_control(text):
            raise _invalid(name, "must not contain control characters", row)
    return Units.of([text for text in found if text is not None])


def _single(arrays: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the fields of requests that are looked at one by one, by row."""
    found: dict[int, dict[str, Any]] = {}
    for name, array in arrays.items():
        for row, value in enumerate(array.to_pylist()):
            if value is not None and value != []:
                found.setdefault(row, {})[name] = value
    return found


def _request(asked: Asked, row: int, fields: dict[str, Any]) -> DecisionRequest:
    document = {
        "campaign": asked.keys[asked.campaign[row]],
        "unit": asked.units.at(row),
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

    made = batch_of(answers)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_batch(made)
    out: bytes = sink.getvalue().to_pybytes()
    return out


def table_of(answers: bulk.Answers) -> Any:
    """Return replies as a table: a row each, in the order of the requests."""
    import pyarrow as pa

    return pa.Table.from_batches([batch_of(answers)])


def batch_of(answers: bulk.Answers) -> Any:
    """Return replies as a batch: a row each, in the order of the requests."""
    import pyarrow as pa

    rows, kinds, told = len(answers.ids), answers.kinds, answers.told
    offsets = np.arange(0, (rows + 1) * bulk.ID_TEXT, bulk.ID_TEXT, dtype=np.int32)
    ids = pa.StringArray.from_buffers(
        rows, pa.py_buffer(offsets), pa.py_buffer(answers.id_texts().tobytes())
    )
    snapshots = np.array([one.snapshot for one in kinds])[told]
    expires = np.array([columnar.micros(one.expires_at) for one in kinds])[told]
    columns = {
        "decision_id": ids,
        **{name: _named(answers, name) for name in ("campaign", "arm", "offer")},
        "propensity": pa.array(answers.propensity),
        **{name: _named(answers, name) for name in ("reason", "segment")},
        "snapshot": pa.array(snapshots, pa.int64()),
        "expires_at": pa.array(expires).view(pa.timestamp("us", "UTC")),
        "products": _products(answers),
    }
    if any(one.late for one in kinds):
        named = pa.array(["disk" if one.late else None for one in kinds], pa.string())
        columns["acknowledged"] = named.take(pa.array(told))
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _named(answers: bulk.Answers, name: str) -> Any:
    """Return a text that many replies share, dictionary-encoded."""
    import pyarrow as pa

    places: dict[str, int] = {}
    codes = []
    for one in answers.kinds:
        text = getattr(one, name)
        text = text.decode() if isinstance(text, bytes) else text
        codes.append(places.setdefault(text, len(places)))
    if len(places) > 1:
        index = np.array(codes, dtype=np.int32)[answers.told]
    else:
        index = np.zeros(len(answers.told), np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(index), pa.array(list(places), pa.string()))


def _products(answers: bulk.Answers) -> Any:
    """Return the products that each offer is on; mostly there are none."""
    import pyarrow as pa

    kind = pa.list_(pa.struct([("product_id", pa.string()), ("percent", pa.float64())]))
    found = [orjson.loads(one.products) for one in answers.kinds]
    if any(found):
        return pa.array(found, kind).take(pa.array(answers.told))
    places = pa.py_buffer(np.zeros(len(answers.told) + 1, np.int32))
    nothing = pa.array([], kind.value_type)
    return pa.ListArray.from_buffers(kind, len(answers.told), [None, places], children=[nothing])
