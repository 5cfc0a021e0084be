"""A route and its contract in one place: what it takes, what it gives, who may call it.

A view is declared with `Api.route` and gets what its annotations ask for, checked::

    @api.route("PUT", "/v1/things/<key>", scope="manage", reply=ThingReply, fails=(404,))
    def replace_thing(call: Call, key: str, body: Thing) -> Reply:
        \"\"\"Replace a thing.

        The first line is the summary of the OpenAPI document, the rest its description.
        \"\"\"

``body`` and ``query`` are optional. From the same declaration `service.views.openapi` writes the
OpenAPI document, so the two cannot drift apart.
"""

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from flask import Blueprint, Response, current_app, g, request
from sqlalchemy.orm import Session
from werkzeug.exceptions import RequestEntityTooLarge

from service import metrics, security
from service.catalogue import KeyView
from service.db import transaction
from service.definition import Document
from service.errors import (
    FieldError,
    Forbidden,
    Invalid,
    TooLarge,
    Unauthorised,
    UnsupportedMedia,
)
from service.imports import jobs
from service.keys import find_live
from service.models import ApiKey
from service.runtime import Runtime
from service.validation import load, parse, printable, validate

Scope = Literal["decide", "reward", "read", "manage", "local"]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
View = TypeVar("View", bound=Callable[..., Any])
MAX_BODY_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30
JSON = "application/json"
PROBLEM = "application/problem+json"


class NoParameters(Document):
    """Routes without parameters of their own take none."""


@dataclass(frozen=True)
class Operation:
    """What the OpenAPI document says about one route."""

    method: Method
    rule: str
    name: str
    summary: str
    description: str
    tag: str
    scope: Scope | None
    hot: bool
    bodies: tuple[type[Document], ...]
    query: type[Document]
    replies: tuple[type[Any], ...]
    status: int
    fails: tuple[int, ...]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    media: Mapping[str, Any]
    examples: Mapping[str, Any]
    files: tuple[str, ...]
    plain: Callable[[bytes], Any] | None = None
    streams: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A document to send, with headers."""

    document: Document | None
    headers: Mapping[str, str] = field(default_factory=dict)


class Call:
    """One request that has been let in."""

    def __init__(self, runtime: Runtime, actor: str) -> None:
        self.runtime, self.actor = runtime, actor

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a transaction that is committed at the end of the block, or rolled back."""
        with transaction(current_app.extensions["barter.engine"]) as session:
            yield session

    def header(self, name: str) -> str | None:
        """Return a header of the request."""
        return request.headers.get(name)

    def start(self, listing: str, page: Any) -> int | None:
        """Return the place that a page of a listing starts before; None for the first page."""
        if page.cursor is None:
            return None
        return security.read_cursor(self._cursor_key, listing, page.cursor)

    def next(self, listing: str, page: Any, places: Sequence[int]) -> str | None:
        """Return the cursor of the next page; one place more than the limit shows there is one."""
        more = len(places) > page.limit
        return self.cursor(listing, places[page.limit - 1] if more else None)

    def cursor(self, listing: str, place: int | None) -> str | None:
        """Return the cursor of the page after a place, if there is one."""
        if place is None:
            return None
        return security.sign_cursor(self._cursor_key, listing, place)

    @property
    def _cursor_key(self) -> bytes:
        return self.runtime.config.key("cursor")


class Api:
    """A blueprint that knows its routes' contracts."""

    def __init__(self, name: str, *, tag: str) -> None:
        self.blueprint = Blueprint(name, __name__)
        self.operations: list[Operation] = []
        self._tag = tag

    def route(
        self,
        method: Method,
        rule: str,
        *,
        scope: Scope | None,
        reply: type[Any] | tuple[type[Any], ...] | None,
        status: int = 200,
        fails: tuple[int, ...] = (),
        takes: tuple[str, ...] = (),
        gives: tuple[str, ...] = (),
        media: Mapping[str, Any] | None = None,
        examples: Mapping[str, Any] | None = None,
        files: tuple[str, ...] = (),
        hot: bool = False,
        plain: Callable[[bytes], Any] | None = None,
        streams: Mapping[str, int | None] | None = None,
        name: str | None = None,
        doc: str | None = None,
    ) -> Callable[[View], View]:
        """Declare a route; ``name`` and ``doc`` replace the view's own name and docstring.

        A ``scope`` of ``None`` leaves the route open to everyone. ``fails`` are statuses besides
        those that follow from the rest (see `service.views.openapi`); ``takes`` and ``gives`` are
        headers of request and reply; ``media`` are other content types of the reply with their
        schemas. ``files`` are the content types of a route that takes a file as its body, which it
        reads itself. A ``hot`` route looks its caller's key up in memory and asks nothing of
        Postgres. ``plain`` reads a usual body in a fraction of the time, and gives None where the
        models must look; what it gives is none of the models, but reads as one. ``streams`` are
        content types besides JSON that the view reads itself, in place of a ``body``, each with
        the most bytes that it may have.
        """

        def declare(view: View) -> View:
            hints = get_type_hints(view)
            summary, _, rest = inspect.cleandoc(doc or view.__doc__ or "").partition("\n")
            operation = Operation(
                method=method,
                rule=rule,
                name=name or view.__name__,
                summary=summary.rstrip("."),
                description=rest.strip() or summary,
                tag=self._tag,
                scope=scope,
                hot=hot,
                bodies=_members(hints.get("body")),
                query=hints.get("query", NoParameters),
                replies=reply if isinstance(reply, tuple) else (reply,) if reply else (),
                status=status,
                fails=fails,
                takes=takes,
                gives=gives,
                media=media or {},
                examples=examples or {},
                files=files,
                plain=plain,
                streams=streams or {},
            )
            self.operations.append(operation)
            self.blueprint.add_url_rule(
                rule,
                endpoint=operation.name,
                view_func=_bound(operation, view, "query" in hints),
                methods=[method],
            )
            return view

        return declare


def _members(hint: Any) -> tuple[type[Document], ...]:
    if hint is None:
        return ()
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(one for one in members if issubclass(one, Document))


def _bound(
    operation: Operation, view: Callable[..., Any], wants_query: bool
) -> Callable[..., Response]:
    @functools.wraps(view)
    def answer(**places: Any) -> Response:
        runtime: Runtime = current_app.extensions["barter"]
        g.operation, g.hot = operation.name, operation.hot
        call = Call(runtime, _actor(operation, runtime))
        query = _query(operation.query)
        if wants_query:
            places["query"] = query
        if operation.bodies:
            places["body"] = None if _streams(operation) else _body(operation)
        if operation.files:
            if request.mimetype not in operation.files:
                raise UnsupportedMedia(f"Send the file as one of {', '.join(operation.files)}.")
            request.max_content_length = MAX_FILE_BYTES
            if (request.content_length or 0) > MAX_FILE_BYTES:
                raise jobs.too_large(MAX_FILE_BYTES)
        made = view(call, **places)
        return _response(operation, made)

    return answer


def _actor(operation: Operation, runtime: Runtime) -> str:
    if operation.scope is None:
        return "anyone"
    given = security.credentials(request.headers.get("Authorization"))
    known: KeyView | ApiKey | None
    if operation.hot:
        known = runtime.catalogue.api_key(given.public_id)
    else:
        with transaction(current_app.extensions["barter.engine"]) as session:
            known = find_live(session, given.public_id)
    stored = b"" if known is None else known.secret_sha256
    if not security.proves(given.secret, stored) or known is None:
        raise Unauthorised("This API key is not known, or it has been revoked.")
    if operation.scope not in known.scopes:
        has = ", ".join(sorted(known.scopes))
        raise Forbidden(f"This needs a key with the scope {operation.scope}; yours has: {has}.")
    g.actor = f"key:{given.public_id}"
    return str(g.actor)


def _query(model: type[Document]) -> Document:
    pairs = request.args.to_dict(flat=False)
    repeated = [name for name, values in pairs.items() if len(values) > 1]
    if repeated:
        text = "is given more than once"
        raise Invalid(
            f"{printable(repeated[0])}: {text}",
            errors=[FieldError(printable(name), text) for name in repeated],
        )
    return validate(model, {name: values[0] for name, values in pairs.items()}, strict=False)


def _streams(operation: Operation) -> bool:
    """Tell whether the body is of a content type that the view reads itself."""
    if request.mimetype not in operation.streams:
        return False
    request.max_content_length = most = operation.streams[request.mimetype]
    if most is not None and (request.content_length or 0) > most:
        raise TooLarge(f"The body is larger than {most:,} bytes.")
    return True


def _body(operation: Operation) -> Any:
    if request.mimetype != JSON:
        others = f" or one of {', '.join(operation.streams)}" if operation.streams else ""
        raise UnsupportedMedia(f"Send the body as {JSON}{others}.")
    try:
        raw = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise TooLarge(f"The body is larger than {MAX_BODY_BYTES:,} bytes.") from None
    if operation.plain is not None and (plain := operation.plain(raw)) is not None:
        return plain
    document = load(raw)
    if not isinstance(document, dict):
        raise Invalid(
            "The body must be a JSON object.", errors=[FieldError("", "must be a JSON object")]
        )
    return parse(_chosen(operation.bodies, document), raw, document)


def _chosen(models: tuple[type[Document], ...], document: dict[str, Any]) -> type[Document]:
    """Return the list form if the document uses its one field, else the single form."""
    for model in models[1:]:
        if set(model.model_fields) & set(document):
            return model
    return models[0]


def _response(operation: Operation, made: Any) -> Response:
    if isinstance(made, Response):
        return made
    reply = made if isinstance(made, Reply) else Reply(made)
    text = "" if reply.document is None else reply.document.model_dump_json()
    response = Response(text, status=operation.status, mimetype=JSON)
    if reply.document is None:
        del response.headers["Content-Type"]
    response.headers.extend(reply.headers)
    return response


def observe(response: Response) -> Response:
    """Measure how long a request took, by operation."""
    started, operation = g.get("started"), g.get("operation")
    if started is not None and operation is not None:
        metrics.observe(operation, response.status_code, time.perf_counter() - started)
    return response
