"""From bytes to documents: strict JSON in, and one clear message per field that is wrong.

The grammar is RFC 8259 without extensions: NaN, Infinity, lone surrogates, repeated names,
bytes that are not UTF-8 and documents nested too deep are refused before any model sees them.
"""

import json
import re
from typing import Any, TypeVar

import orjson
import pydantic

from service.errors import FieldError, Invalid, Malformed

Model = TypeVar("Model", bound=pydantic.BaseModel)

MAX_ERRORS = 20
TAG = "kind"
"""The field that tells offers, and features, apart."""
_SUBJECT = re.compile(r"^(Input|String|Tuple|List|Dictionary) should")
_PREFIXED = re.compile(r"^([a-z_]+): (.+)$", re.DOTALL)


class _Refused(ValueError):
    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused("is given twice in one object", name)
    return document


def _constant(name: str) -> Any:
    raise _Refused(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def load(raw: bytes) -> Any:
    """Return the JSON document in ``raw``; raises `Malformed` unless it is strictly one."""
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except _Refused as refused:
        errors = [FieldError(printable(refused.field), str(refused))]
        raise Malformed(
            f"The body is not valid JSON: {errors[0].field or 'it'} {refused}.", errors=errors
        ) from None
    except RecursionError:
        raise Malformed("The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise Malformed("The body is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise Malformed(
            f"The body is not valid JSON: line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError:
        raise Malformed("The body holds a number that is too long.") from None


def parse(model: type[Model], raw: bytes, document: Any = None) -> Model:
    """Return ``raw`` as a ``model``; raises `Malformed` or `Invalid`, which name the fields.

    ``document`` is what `load` made of ``raw``, where the caller has it already.
    """
    document = load(raw) if document is None else document
    try:
        return model.model_validate_json(raw, strict=True)
    except pydantic.ValidationError as error:
        raise _invalid(error, document) from None


def plain(model: type[Model], raw: bytes) -> Model | None:
    """Return what `parse` returns, in a third of the time, or None where `parse` must look.

    That is where something is wrong, and where a name might be given twice: then there are more
    pairs than names. White space before a colon, or one in a text, is looked at too.
    """
    try:
        document = orjson.loads(raw)
        if not isinstance(document, dict):
            return None
        names = len(document) + sum(len(v) for v in document.values() if isinstance(v, dict))
        if raw.count(b'":') != names:
            return None
        return model.model_validate_json(raw, strict=True)
    except ValueError:
        return None


def validate(model: type[Model], document: Any, *, strict: bool = True) -> Model:
    """Return a document that was built in memory as a ``model``; raises `Invalid`.

    With ``strict=False`` text is converted: what query strings and forms need.
    """
    try:
        if strict:
            return model.model_validate_json(json.dumps(document), strict=True)
        return model.model_validate(document)
    except pydantic.ValidationError as error:
        raise _invalid(error, document) from None


def _invalid(error: pydantic.ValidationError, document: Any) -> Malformed | Invalid:
    fields = field_errors(error, document)
    if any(entry["type"] == "json_invalid" for entry in error.errors(include_context=False)):
        return Malformed(
            "The body is not valid JSON: it holds a character that is not text,"
            " a number too long, or is nested too deeply."
        )
    first = fields[0]
    return Invalid(f"{first.field or 'The body'}: {first.message}", errors=fields)


def field_errors(error: pydantic.ValidationError, document: Any) -> list[FieldError]:
    """Return one entry per field, at most `MAX_ERRORS`, in the order they were found."""
    messages: dict[str, list[str]] = {}
    found = error.errors(include_url=False, include_context=False, include_input=False)
    for entry in found:
        if _follows(entry, found):
            continue
        field, message = _place(entry["loc"], entry["type"], document), _words(entry)
        prefixed = _PREFIXED.match(message)
        if prefixed and entry["type"] == "value_error" and not field:
            field, message = prefixed.group(1), prefixed.group(2)
        known = messages.setdefault(field, [])
        if message not in known:
            known.append(message)
    fields = [FieldError(field, " or ".join(said)) for field, said in messages.items()]
    return fields[:MAX_ERRORS]


def _follows(entry: Any, others: Any) -> bool:
    """Tell whether an error only follows from another: a list that is short of its bad items."""
    if entry["type"] == "default_factory_not_called":
        return True
    place = entry["loc"]
    return entry["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in others
    )


def _words(entry: Any) -> str:
    if entry["type"] == "extra_forbidden":
        return "is not a field here"
    if entry["type"] in ("missing", "union_tag_not_found"):
        return "is required"
    message: str = entry["msg"]
    if entry["type"] == "union_tag_invalid":
        return f"must be one of {message.partition('expected tags: ')[2]}"
    message = message.removeprefix("Value error, ").removesuffix(" after validation")
    return _SUBJECT.sub("must", message.replace(" after validation,", ","))


def _place(location: tuple[int | str, ...], kind: str, document: Any) -> str:
    """Turn pydantic's location into a path of the caller's document.

    Pydantic adds the names of union members; what cannot be found in the document is left out.
    """
    path, here = "", document
    for step, part in enumerate(location):
        if isinstance(here, dict) and part in here:
            path, here = f"{path}.{printable(str(part))}", here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path, here = f"{path}[{part}]", here[part]
        elif kind == "missing" and step == len(location) - 1:
            path = f"{path}.{part}"
    if kind.startswith("union_tag_"):
        path = f"{path}.{TAG}"
    return path.removeprefix(".")


def printable(text: str, limit: int = 80) -> str:
    """Return text that is safe to repeat in an error: short, and without odd characters."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= limit else f"{clean[:limit]}…"
