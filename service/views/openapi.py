"""The OpenAPI 3.1 document, written from the routes' own contracts.

Statuses that follow from a contract are added here, so that no route can forget them:

| what a route has | statuses |
|---|---|
| anything | 422 (parameters), 500 |
| a scope | 401, 403 |
| a body | 400, 413, 415 |
| anything that keeps or reads | 503 |
"""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from service.errors import (
    BarterError,
    Conflict,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
    Unauthorised,
    Unavailable,
    UnsupportedMedia,
)
from service.names import KEY_PATTERN
from service.views.contract import JSON, PROBLEM, Operation
from service.views.shapes import Problem

Schema = dict[str, Any]
VERSION = "1.0"
BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}
REFERENCE = "#/components/schemas/{model}"
DESCRIPTION = """Barter chooses, per customer, which discount to offer, and learns what pays.

**Serving.** Ask for an arm with `POST /v1/decisions`, report what happened with
`POST /v1/outcomes`. Both are durable before they answer and work while Postgres is away.

**Conventions.** Amounts are integers in minor units of the campaign's currency (`_minor`). Times
are RFC 3339 in UTC. Lists are read page by page: send the `next` of a page as `cursor`. Errors
are `application/problem+json` (RFC 9457); `errors` names each field at fault. Unknown fields and
parameters are refused, never ignored. Bodies may have up to 1 MiB.

**Features.** A campaign may declare `features`: numbers, categories and booleans that it reads
from the `attributes` of a request, or from those stored about the unit. Contextual policies decide
by them. Their values are encoded once, logged as the `context` of the decision, and told again by
`GET /v1/decisions/{decision_id}`. An attribute that is missing or of another type never fails a
decision: the feature's default is used, and the log says so.

**Keys.** Send `Authorization: Bearer bk_live_…`. A key has exactly the scopes it was made with:
`decide`, `reward`, `read`, `manage`, `local`; none contains another. `local` is for servers of
your own that decide in their own process: it gives away what policies have learnt, the seeds of
their draws and the key of pseudonyms."""
TAGS = {
    "Serving": "What app servers call on the checkout path.",
    "Local decisions": "For clients that decide in their own process.",
    "Campaigns": "Experiments: what may be given, to whom, and for what goal.",
    "Decision log": "What was chosen, with what probability, and why.",
    "Customers": "Stored attributes that segment rules and features read.",
    "Data": "Customers, products, what customers did and bought: by file or in lists.",
    "Access": "API keys, console users, the audit log.",
    "Operations": "For load balancers and monitoring.",
}
PLACES: dict[str, tuple[Schema, str]] = {
    "key": ({"type": "string", "pattern": KEY_PATTERN, "maxLength": 64}, "The campaign's key."),
    "public_id": (
        {"type": "string", "pattern": "^[a-z0-9]{8}$"},
        "The eight characters after `bk_live_`.",
    ),
    "user_id": ({"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, "The user's number."),
    "import_id": (
        {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "The `id` of the import.",
    ),
    "decision_id": ({"type": "string", "format": "uuid"}, "The `decision_id` of the reply."),
}
REQUEST_HEADERS: dict[str, tuple[bool, Schema, str]] = {
    "Idempotency-Key": (
        False,
        {"type": "string", "minLength": 1, "maxLength": 200},
        "For one decision: the same as `request_id`.",
    ),
    "If-None-Match": (
        False,
        {"type": "string", "examples": ['"3.running.0.17"']},
        "The ETag of what you have: if it is still that, the answer is 304 without a body.",
    ),
    "If-Match": (
        False,
        {"type": "string", "examples": ['"3"']},
        "The ETag of the version that you read, or `*` for whatever there is.",
    ),
}
REPLY_HEADERS: dict[str, tuple[Schema, str]] = {
    "ETag": ({"type": "string"}, "The revision, in quotes: send it as If-Match."),
    "Location": ({"type": "string"}, "Where the new thing is."),
    "X-Request-Id": ({"type": "string"}, "Identifies the request in the service's log."),
    "Retry-After": ({"type": "string"}, "Seconds to wait before trying again."),
    "WWW-Authenticate": ({"type": "string"}, "How to authenticate."),
}
PROBLEMS: dict[int, tuple[type[BarterError], tuple[str, ...]]] = {
    400: (Malformed, ()),
    401: (Unauthorised, ("WWW-Authenticate",)),
    403: (Forbidden, ()),
    404: (NotFound, ()),
    409: (Conflict, ()),
    412: (PreconditionFailed, ()),
    413: (TooLarge, ()),
    415: (UnsupportedMedia, ()),
    422: (Invalid, ()),
    428: (PreconditionRequired, ()),
    500: (BarterError, ()),
    503: (Unavailable, ("Retry-After",)),
}


class _Generator(GenerateJsonSchema):
    """Schemas without the titles that repeat each field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document(operations: Sequence[Operation]) -> Schema:
    """Return the OpenAPI document of these routes, as JSON values."""
    schemas, components = _schemas(operations)
    paths: dict[str, Schema] = {}
    for operation in operations:
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", operation.rule)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Barter",
            "version": VERSION,
            "summary": "Personalised discounts by multi-armed bandits.",
            "description": DESCRIPTION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {_problem_name(status): _problem(status) for status in PROBLEMS},
            "headers": {name: _header(name) for name in REPLY_HEADERS},
            "securitySchemes": {
                "ApiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "bk_live_<id>_<secret>",
                    "description": "An API key; each operation names the scope that it needs.",
                }
            },
        },
    }


def statuses(operation: Operation) -> list[int]:
    """Return the statuses with which a route may refuse."""
    found = {422, 500, *operation.fails}
    if operation.scope is not None:
        found |= {401, 403, 503}
    if operation.bodies or operation.files:
        found |= {400, 413, 415}
    return sorted(found)


def _schemas(operations: Iterable[Operation]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    wanted: dict[tuple[Any, JsonSchemaMode], TypeAdapter[Any]] = {}
    for operation in operations:
        for body in operation.bodies:
            wanted[body, "validation"] = TypeAdapter(body)
        for reply in operation.replies:
            wanted[reply, "serialization"] = TypeAdapter(reply)
    wanted[Problem, "serialization"] = TypeAdapter(Problem)
    inputs = [(model, mode, adapter) for (model, mode), adapter in wanted.items()]
    found, shared = TypeAdapter.json_schemas(
        inputs, ref_template=REFERENCE, schema_generator=_Generator
    )
    return dict(found), dict(shared["$defs"])


def _operation(operation: Operation, schemas: dict[Any, Schema]) -> Schema:
    made: Schema = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [*_places(operation), *_query(operation), *_takes(operation)],
        "responses": _responses(operation, schemas),
        "security": [] if operation.scope is None else [{"ApiKey": [operation.scope]}],
    }
    if operation.bodies:
        content: Schema = {
            "schema": _any_of([schemas[body, "validation"] for body in operation.bodies])
        }
        if operation.examples:
            content["examples"] = dict(operation.examples)
        others = dict.fromkeys(operation.streams, BINARY)
        made["requestBody"] = {"required": True, "content": {JSON: content, **others}}
    if operation.files:
        made["requestBody"] = {"required": True, "content": dict.fromkeys(operation.files, BINARY)}
    return made


def _places(operation: Operation) -> list[Schema]:
    found = []
    for name in re.findall(r"<(?:\w+:)?(\w+)>", operation.rule):
        schema, text = PLACES[name]
        found.append(
            {"name": name, "in": "path", "required": True, "schema": schema, "description": text}
        )
    return found


def _query(operation: Operation) -> list[Schema]:
    model = operation.query
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    whole = TypeAdapter(model).json_schema(schema_generator=_Generator)
    found = []
    for name, schema in whole.get("properties", {}).items():
        text = schema.pop("description", None) or f"The {name}."
        found.append(
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "schema": _without_null(schema),
                "description": text,
            }
        )
    return found


def _without_null(schema: Schema) -> Schema:
    """A parameter of a URL is there or not; it cannot be null."""
    options = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if not options:
        return schema
    return options[0] if len(options) == 1 else {"anyOf": options}


def _takes(operation: Operation) -> list[Schema]:
    found = []
    for name in operation.takes:
        _, schema, text = REQUEST_HEADERS[name]
        required = name == "If-Match" and 428 in operation.fails
        found.append(
            {
                "name": name,
                "in": "header",
                "required": required,
                "schema": schema,
                "description": text,
            }
        )
    return found


def _responses(operation: Operation, schemas: dict[Any, Schema]) -> Schema:
    content: Schema = {media: {"schema": schema} for media, schema in operation.media.items()}
    if operation.replies:
        shapes = [schemas[reply, "serialization"] for reply in operation.replies]
        content[JSON] = {"schema": _any_of(shapes)}
    reply: Schema = {
        "description": _sentence(operation),
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in (*operation.gives, "X-Request-Id")
        },
    }
    if content:
        reply["content"] = content
    refused: Schema = {
        str(status): {"$ref": f"#/components/responses/{_problem_name(status)}"}
        for status in statuses(operation)
    }
    if "If-None-Match" in operation.takes:
        headers = {name: reply["headers"][name] for name in ("ETag", "X-Request-Id")}
        refused["304"] = {"description": "It is still what you have.", "headers": headers}
    return {str(operation.status): reply, **refused}


def _sentence(operation: Operation) -> str:
    if operation.replies:
        text = (operation.replies[0].__doc__ or "").split("\n")[0]
        return text or HTTPStatus(operation.status).phrase
    return HTTPStatus(operation.status).phrase


def _any_of(schemas: list[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _problem_name(status: int) -> str:
    return f"Problem{status}"


def _problem(status: int) -> Schema:
    kind, headers = PROBLEMS[status]
    return {
        "description": f"{kind.title}. {(kind.__doc__ or '').split(chr(10))[0]}",
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in (*headers, "X-Request-Id")
        },
        "content": {
            PROBLEM: {
                "schema": {"$ref": REFERENCE.format(model="Problem")},
                "example": kind().problem(instance="urn:barter:request:4b1f0c"),
            }
        },
    }


def _header(name: str) -> Schema:
    schema, text = REPLY_HEADERS[name]
    return {"schema": schema, "description": text}
