"""Bad input of every kind that the API takes gets a 4xx problem document and changes nothing.

Every value of every example body is replaced by every kind of nonsense, one at a time, and every
route that takes a body gets bodies that are no JSON, too deep, too large or not what was announced.
The state of the database and of the local log is compared before and after.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine, text

from service.config import Config
from service.models import Base
from service.views import examples
from tests.web import PROBLEM, Web, serving

PLACEHOLDER = "@@here@@"
DEEP = "[" * 10_000 + "]" * 10_000
DEEP_OBJECT = '{"a":' * 10_000 + "1" + "}" * 10_000
NONSENSE = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e308": "1e308",
    "1e400": "1e400",
    "5000 digits": "1" * 5000,
    "an empty list": "[]",
    "a list": "[[1]]",
    "an object": '{"a":{"b":1}}',
    "a NUL": '"a\\u0000b"',
    "a lone surrogate": '"\\ud800"',
    "a long text": json.dumps("x" * 10_000),
    "depth 10,000": DEEP,
}
RAW_BODIES = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1e308",
    "a text": b'"x"',
    "half a document": b'{"a":',
    "two documents": b"{}{}",
    "single quotes": b"{'a':1}",
    "not UTF-8": b'{"unit":"\xff"}',
    "UTF-16": '{"unit":"a"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a NUL": b'{"unit":"a\x00b"}',
    "NaN": b"NaN",
    "a lone surrogate as a name": b'{"\\ud800":1}',
    "a NUL as a name": b'{"\\u0000":1}',
    "depth 10,000": DEEP.encode(),
    "depth 10,000 of objects": DEEP_OBJECT.encode(),
    "2 MB": b'{"unit":"' + b"a" * (2 << 20) + b'"}',
}


@dataclass(frozen=True)
class Route:
    """A route that takes a body, and a body that it accepts."""

    method: str
    path: str
    scope: str
    body: dict[str, Any]
    required: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)


CAMPAIGN = examples.CAMPAIGN["campaign"]["value"]
FEATURED = examples.CAMPAIGN["features"]["value"]
USER = examples.USER["marketer"]["value"]
PARTS = ("arms.0.key", "arms.0.name", "arms.0.offer", "arms.1.offer.percent", "segments.0.rules",
         "segments.0.rules.0.attribute", "segments.0.rules.0.op", "segments.0.rules.0.value",
         "policy.name")  # fmt: skip
ROUTES = [
    Route("POST", "/v1/decisions", "decide", examples.DECISIONS["one"]["value"],
          ("campaign", "unit")),
    Route("POST", "/v1/decisions", "decide", examples.DECISIONS["list"]["value"],
          ("decisions", "decisions.0.unit", "decisions.1.campaign")),
    Route("POST", "/v1/outcomes", "reward", examples.OUTCOMES["one"]["value"],
          ("event_id", "decision_id", "kind")),
    Route("POST", "/v1/outcomes", "reward", examples.OUTCOMES["list"]["value"],
          ("outcomes", "outcomes.1.kind")),
    Route("POST", "/v1/campaigns", "manage", CAMPAIGN | {"key": "other"},
          ("key", "name", "arms", "default_arm", *PARTS)),
    Route("POST", "/v1/campaigns", "manage", FEATURED | {"key": "another"},
          ("features.0.kind", "features.0.key", "features.0.name", "features.1.values")),
    Route("POST", "/v1/decisions", "decide", examples.DECISIONS["features"]["value"], ()),
    Route("PUT", "/v1/campaigns/spring-sale", "manage", CAMPAIGN,
          ("key", "name", "arms", "default_arm"), {"If-Match": "*"}),
    Route("POST", "/v1/campaigns/spring-sale/duplicate", "manage",
          examples.DUPLICATE["copy"]["value"], ("key",)),
    Route("POST", "/v1/customers", "manage", examples.CUSTOMERS["two"]["value"],
          ("customers", "customers.0.unit", "customers.1.attributes")),
    Route("POST", "/v1/keys", "manage", examples.KEY["checkout"]["value"], ("name", "scopes")),
    Route("POST", "/v1/users", "manage", USER | {"email": "bea@shop.example"},
          ("email", "name", "role", "password")),
    Route("PATCH", "/v1/users/1", "manage", {"role": "analyst", "disabled": True}, ()),
    Route("PUT", "/v1/users/1/password", "manage", {"current": "three calm otters",
          "new": "another long one"}, ("current", "new")),
]  # fmt: skip


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        made.call("POST", "/v1/campaigns", json=CAMPAIGN)
        made.call("POST", "/v1/campaigns/spring-sale/launch")
        made.call("POST", "/v1/campaigns", json=FEATURED)
        made.call("POST", "/v1/campaigns/autumn-sale/launch")
        made.call("POST", "/v1/users", json=USER)
        made.loop.carry()
        yield made


def everything(web: Web) -> dict[str, Any]:
    """Return what there is: a digest of every table, and the length of the local log."""
    with web.engine.connect() as connection:
        found: dict[str, Any] = {
            table.name: connection.execute(
                text(
                    f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text))"
                    f" FROM {table.name} t"
                )
            ).one()
            for table in Base.metadata.sorted_tables
        }
    return found | {"local log": web.loop.runtime.spool.last()}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path of every value inside a document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a document with another value at a path."""
    copy = json.loads(json.dumps(document))
    here = copy
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    return copy


def without(document: Any, path: str) -> Any:
    """Return a copy of a document that lacks the value at a dotted path."""
    copy = json.loads(json.dumps(document))
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    here = copy
    for step in steps:
        here = here[step]
    del here[last]
    return copy


def refuse(web: Web, route: Route, body: bytes, what: str) -> None:
    reply = web.call(
        route.method, route.path, scope=route.scope, data=body, headers=route.headers,
        content_type="application/json",
    )  # fmt: skip
    said = f"{route.method} {route.path} {what}: {reply.status_code} {reply.text[:300]}"
    assert 400 <= reply.status_code < 500, said
    assert reply.content_type == PROBLEM, said
    document = reply.get_json(force=True)
    assert document["detail"], said
    if reply.status_code == 422:
        assert document["errors"], said
        assert all(one["message"] for one in document["errors"]), said


def may_be_large(route: Route, path: tuple[Any, ...], kind: str) -> bool:
    """Tell whether the nonsense is fine here: an empty list where a list may be empty."""
    return kind == "an empty list" and path[-1] in ("segments", "exclude_arms")


def test_nonsense_in_any_place_is_refused_and_changes_nothing(web: Web) -> None:
    before, tried = everything(web), 0
    for route in ROUTES:
        for path in places(route.body):
            marked = json.dumps(replaced(route.body, path, PLACEHOLDER))
            for kind, token in NONSENSE.items():
                if may_be_large(route, path, kind):
                    continue
                body = marked.replace(f'"{PLACEHOLDER}"', token).encode()
                refuse(web, route, body, f"{path} is {kind}")
                tried += 1
    assert tried > 1000
    assert everything(web) == before


def test_missing_unknown_and_repeated_fields_are_refused_and_change_nothing(web: Web) -> None:
    before = everything(web)
    for route in ROUTES:
        for name in route.required:
            refuse(web, route, json.dumps(without(route.body, name)).encode(), f"lacks {name}")
        for path in ((), *places(route.body)):
            here: Any = route.body
            for step in path:
                here = here[step]
            if isinstance(here, dict) and (not path or path[-1] != "attributes"):
                odd = replaced(route.body, (*path, "surprise"), 1)
                refuse(web, route, json.dumps(odd).encode(), f"{path} has one more")
        first = next(iter(route.body))
        twice = f'{{"{first}":1,{json.dumps(route.body)[1:]}'
        refuse(web, route, twice.encode(), f"{first} twice")
    assert everything(web) == before


def test_bodies_that_are_no_json_object_are_refused_and_change_nothing(web: Web) -> None:
    before = everything(web)
    for route in ROUTES:
        for kind, body in RAW_BODIES.items():
            refuse(web, route, body, kind)
    assert everything(web) == before


def test_unknown_things_are_refused_and_change_nothing(web: Web) -> None:
    before = everything(web)
    ask = {"campaign": "unknown", "unit": "u"}
    for body in (ask, {"decisions": [ask]}):
        assert web.call("POST", "/v1/decisions", scope="decide", json=body).status_code == 404
    for method, path in (
        ("GET", "/v1/campaigns/unknown"), ("POST", "/v1/campaigns/unknown/launch"),
        ("DELETE", "/v1/campaigns/unknown"), ("DELETE", "/v1/keys/unknown0"),
        ("GET", "/v1/decisions/00000000-0000-0000-0000-000000000000"),
        ("GET", "/v1/campaigns/%00"), ("GET", "/v1/decisions/%ED%A0%80"),
        ("GET", "/v1/campaigns/" + "a" * 5000),
    ):  # fmt: skip
        scope = "read" if method == "GET" else "manage"
        reply = web.call(method, path, scope=scope)
        assert (reply.status_code, reply.content_type) == (404, PROBLEM), path
    for query in ("unit=%00", "unit=", "unit=" + "x" * 201, "unit=a&unit=b", "who=a", ""):
        reply = web.call("GET", f"/v1/customers?{query}", scope="read")
        assert (reply.status_code, reply.content_type) == (422, PROBLEM), query
    assert everything(web) == before


NUMBER, CATEGORY, BOOLEAN = FEATURED["features"]
BAD_FEATURES: dict[str, tuple[Any, str, str]] = {
    "no list": ({"visits": "number"}, "features", "array"),
    "null": (None, "features", "array"),
    "no object": (["visits"], "features[0]", "object"),
    "nested": ([[NUMBER]], "features[0]", "object"),
    "an object for a key": ([NUMBER | {"key": {"key": "visits"}}], "features[0].key", "string"),
    "no key": ([without(NUMBER, "key")], "features[0].key", "is required"),
    "no name": ([without(NUMBER, "name")], "features[0].name", "is required"),
    "no kind": ([without(NUMBER, "kind")], "features[0].kind", "is required"),
    "unknown kind": ([NUMBER | {"kind": "text"}], "features[0].kind", "one of 'number'"),
    "unknown field": ([NUMBER | {"mean": 3}], "features[0].mean", "is not a field here"),
    "another kind's field": ([NUMBER | {"values": ["a"]}], "features[0].values", "not a field"),
    "an empty key": ([NUMBER | {"key": ""}], "features[0].key", "at least 1 character"),
    "a key of blanks": ([NUMBER | {"key": "  "}], "features[0].key", "with a blank"),
    "a key with a blank": ([NUMBER | {"key": "visits "}], "features[0].key", "with a blank"),
    "a long key": ([NUMBER | {"key": "k" * 201}], "features[0].key", "at most 200"),
    "a long name": ([NUMBER | {"name": "é" * 121}], "features[0].name", "at most 120"),
    "a control character": ([NUMBER | {"key": "a\x07"}], "features[0].key", "control characters"),
    "a number for a name": ([NUMBER | {"name": 7}], "features[0].name", "string"),
    "text for a number": ([NUMBER | {"centre": "10"}], "features[0].centre", "number"),
    "a boolean for a number": ([NUMBER | {"scale": True}], "features[0].scale", "number"),
    "a list for a number": ([NUMBER | {"default": [1]}], "features[0].default", "number"),
    "a scale of zero": ([NUMBER | {"scale": 0}], "features[0].scale", "greater than 0"),
    "a scale below zero": ([NUMBER | {"scale": -1.5}], "features[0].scale", "greater than 0"),
    "a huge centre": ([NUMBER | {"centre": 2**54}], "features[0].centre", "less than or equal"),
    "a huge default": ([NUMBER | {"default": -1e300}], "features[0].default", "greater than or"),
    "no values": ([CATEGORY | {"values": []}], "features[0].values", "at least 1"),
    "values that clash": ([CATEGORY | {"values": ["a", "b", "a"]}], "features[0].values", '"a"'),
    "65 values": ([CATEGORY | {"values": [str(n) for n in range(65)]}], "features[0].values", "64"),
    "a number as value": ([CATEGORY | {"values": ["a", 1]}], "features[0].values[1]", "string"),
    "an empty value": ([CATEGORY | {"values": ["a", ""]}], "features[0].values[1]", "at least 1"),
    "a long value": ([CATEGORY | {"values": ["v" * 201]}], "features[0].values[0]", "at most 200"),
    "a number as default": ([BOOLEAN | {"default": 1}], "features[0].default", "boolean"),
    "a text as default": ([BOOLEAN | {"default": "yes"}], "features[0].default", "boolean"),
    "keys that clash": ([NUMBER, BOOLEAN | {"key": "visits"}], "features", 'rename one of the two'),
    "keys that look alike": (
        [NUMBER | {"key": "caf\u00e9"}, BOOLEAN | {"key": "cafe\u0301"}], "features", "keys must",
    ),
    "names that clash": (
        [NUMBER, BOOLEAN | {"name": NUMBER["name"]}], "features", "names must differ",
    ),
    "257 places": (
        [CATEGORY | {"key": f"k{n}", "name": f"K{n}", "values": [str(v) for v in range(64)]}
         for n in range(4)] + [BOOLEAN],
        "features", "list fewer values",
    ),
    "65 features": (
        [BOOLEAN | {"key": f"k{n}", "name": f"K{n}"} for n in range(65)], "features", "at most 64",
    ),
    "10,000 features": (
        [BOOLEAN | {"key": f"k{n}", "name": f"K{n}"} for n in range(10_000)],
        "features", "at most 64",
    ),
    "none, with a policy that needs some": ([], "policy", "declare some in features"),
}  # fmt: skip


def test_bad_features_are_refused_by_field_with_the_remedy_and_change_nothing(web: Web) -> None:
    before = everything(web)
    for kind, (features, field_name, remedy) in BAD_FEATURES.items():
        for method, path, headers in (
            ("POST", "/v1/campaigns", {}),
            ("PUT", "/v1/campaigns/autumn-sale", {"If-Match": "*"}),
        ):
            key = "another" if method == "POST" else "autumn-sale"
            body = FEATURED | {"key": key, "features": features}
            reply = web.call(method, path, json=body, headers=headers)
            assert (reply.status_code, reply.content_type) == (422, PROBLEM), (kind, reply.text)
            told = {one["field"]: one["message"] for one in reply.get_json(force=True)["errors"]}
            assert field_name in told, (kind, told)
            assert remedy in told[field_name], (kind, told)
    assert everything(web) == before


BAD_ATTRIBUTES: dict[str, tuple[str, int, str]] = {
    "NaN": ('{"visits": NaN}', 400, ""),
    "infinite": ('{"visits": -Infinity}', 400, ""),
    "overflowing": ('{"visits": 1e999}', 422, "attributes.visits"),
    "huge": ('{"visits": 1e300}', 422, "attributes.visits"),
    "null": ('{"visits": null}', 422, "attributes.visits"),
    "a list": ('{"visits": [1, 2]}', 422, "attributes.visits"),
    "nested": ('{"visits": {"last": {"month": 3}}}', 422, "attributes.visits"),
    "too long": (json.dumps({"channel": "x" * 501}), 422, "attributes.channel"),
    "a control character": ('{"channel": "a\\u0007"}', 422, "attributes.channel"),
    "a lone surrogate": ('{"channel": "\\udc00"}', 400, ""),
    "twice": ('{"visits": 1, "visits": 2}', 400, "visits"),
    "an empty name": ('{"": 1}', 422, "attributes"),
    "10,000 attributes": (json.dumps({f"a{n}": n for n in range(10_000)}), 422, "attributes"),
    "no object": ("[14]", 422, "attributes"),
}


def test_attributes_that_no_feature_could_read_are_refused_and_change_nothing(web: Web) -> None:
    before = everything(web)
    for kind, (attributes, status, where) in BAD_ATTRIBUTES.items():
        body = f'{{"campaign": "autumn-sale", "unit": "u", "attributes": {attributes}}}'
        reply = web.call(
            "POST", "/v1/decisions", scope="decide", data=body, content_type="application/json"
        )
        assert (reply.status_code, reply.content_type) == (status, PROBLEM), (kind, reply.text)
        told = [one["field"] for one in reply.get_json(force=True)["errors"]]
        assert not where or any(one.startswith(where) for one in told), (kind, told)
    assert everything(web) == before


def test_the_examples_that_were_spoilt_are_good(web: Web) -> None:
    """Else the tests above would prove nothing."""
    for route in ROUTES:
        reply = web.call(
            route.method, route.path, scope=route.scope, json=route.body, headers=route.headers
        )
        assert reply.status_code in (200, 201, 202), (route.path, reply.text)
