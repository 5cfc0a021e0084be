"""Schemathesis over the whole OpenAPI document, with a key that may do everything.

For every operation it makes requests that fit the document and requests that do not, and checks
every reply: no 5xx, no status, header, content type or shape that the document does not name, and
nothing accepted that the document rules out. Half of the requests go to things that exist.

``positive_data_acceptance`` is left out: the document cannot say, for example, that `default_arm`
must be one of the arms, so some requests that fit it are rightly refused with 422.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from service import db, keys
from service.config import Config
from service.models import SCOPES
from service.views import examples
from tests.web import Web, serving

EXAMPLES = 4
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        with db.transaction(engine) as session:
            made.keys["all"] = keys.create(session, name="all", scopes=SCOPES, actor="test")[1]
        for example in examples.CAMPAIGN.values():
            made.call("POST", "/v1/campaigns", json=example["value"])
            made.call("POST", f"/v1/campaigns/{example['value']['key']}/launch")
        made.call("POST", "/v1/users", json=examples.USER["marketer"]["value"])
        made.loop.carry()
        yield made


def existing(web: Web) -> dict[str, Any]:
    """Return path parameters of things that exist."""
    body = examples.DECISIONS["one"]["value"]
    made = web.call("POST", "/v1/decisions", scope="decide", json=body).get_json()
    web.loop.carry()
    key = web.call("POST", "/v1/keys", json=examples.KEY["checkout"]["value"]).get_json()
    user = web.call("GET", "/v1/users").get_json()["users"][0]
    imported = web.call(
        "POST", "/v1/imports?kind=products", data=b"id,price\na,1.00\n", content_type="text/csv"
    ).get_json()
    return {
        "key": "spring-sale",
        "decision_id": made["decision_id"],
        "public_id": key["id"],
        "user_id": user["id"],
        "import_id": imported["id"],
    }


def try_examples(web: Web, operation: Any, known: dict[str, Any]) -> int:
    """Send the document's own examples, which must work; return how many there were."""
    content = (operation.definition.raw.get("requestBody") or {}).get("content", {})
    shown = content.get("application/json", {}).get("examples", {})
    headers = {"Authorization": f"Bearer {web.keys['all']}", "If-Match": "*"}
    names = {parameter.name for parameter in operation.path_parameters}
    if operation.label == "POST /v1/local/decisions":
        return 0  # a draw is recomputed, so no example fits: see test_local.py
    for place, example in enumerate(shown.values()):
        body, path = example["value"], known
        if operation.label in ("POST /v1/campaigns", "POST /v1/users"):
            new = {"key": f"fresh-{place}"} if "key" in body else {"email": "b@shop.example"}
            body = body | new
        if operation.label == "PUT /v1/campaigns/{key}":
            path = known | {"key": body["key"]}
        case = operation.Case(
            body=body,
            media_type="application/json",
            path_parameters={name: path[name] for name in names},
        )
        reply = case.call_and_validate(headers=headers, checks=CHECKS[:-1])
        assert reply.status_code < 300, (operation.label, reply.text)
    return len(shown)


def exercise(web: Web, operation: Any, known: dict[str, Any]) -> int:
    """Send requests to one operation and check the replies; return how many there were."""
    names = {parameter.name for parameter in operation.path_parameters}
    real = {name: known[name] for name in names}
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    cases = [operation.as_strategy(generation_mode=mode) for mode in modes]
    if real:
        cases.append(operation.as_strategy(path_parameters=real))
    headers = {"Authorization": f"Bearer {web.keys['all']}"}
    sent = 0

    @settings(
        max_examples=EXAMPLES * len(cases),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(cases))
    def send(case: Any) -> None:
        nonlocal sent
        sent += 1
        case.call_and_validate(headers=headers, checks=CHECKS)

    send()
    return sent


@pytest.mark.slow
def test_the_service_keeps_to_its_document(web: Web) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", web.app)
    known = existing(web)
    results: list[Any] = list(schema.get_all_operations())
    operations = [result.ok() for result in results]
    declared = sum(len(api.operations) for api in web.app.extensions["barter.apis"])
    assert len(operations) == declared - 1, "all but the document itself"
    assert sum(try_examples(web, operation, known) for operation in operations) >= 10
    sent = 0
    with warnings.catch_warnings():
        # Schemathesis' own generators warn about what they filter out.
        warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)
        for operation in operations:
            sent += exercise(web, operation, known)
    assert sent > 400
