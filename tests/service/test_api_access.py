"""Who may do what over HTTP: scopes, keys, users, customers, the audit log."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, select
from werkzeug.routing import Rule

from service import db, security, users
from service.config import Config
from service.models import ApiKey, Customer, User
from tests.web import Web, fields, problem, serving

OPEN = {"get_health", "get_ready", "get_openapi", "get_docs"}
EXAMPLES = {
    "key": "spring",
    "public_id": "abcdefgh",
    "user_id": 1,
    "import_id": 1,
    "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
}


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


def _machine_rules(web: Web) -> list[tuple[Rule, str]]:
    """Return every route that is not of the console or a static file, with each method."""
    return [
        (rule, method)
        for rule in web.app.url_map.iter_rules()
        if not rule.endpoint.startswith(("console.", "static"))
        for method in sorted((rule.methods or set()) - {"OPTIONS"})
    ]


def test_every_route_asks_for_a_key_of_the_right_scope(web: Web) -> None:
    rules = _machine_rules(web)
    assert len(rules) > 30
    scopes = {
        operation.name: operation.scope
        for part in web.app.extensions["barter.apis"]
        for operation in part.operations
    }
    for rule, method in rules:
        name = rule.endpoint.rpartition(".")[2]
        adapter = web.app.url_map.bind("localhost")
        path = adapter.build(rule.endpoint, {one: EXAMPLES[one] for one in rule.arguments})
        if name in OPEN:
            assert web.call(method, path, scope=None).status_code == 200, path
            continue
        assert web.call(method, path, scope=None).status_code == 401, path
        for scope in web.keys:
            status = web.call(method, path, scope=scope).status_code
            assert (status == 403) == (scope != scopes[name]), (method, path, scope, status)


PUBLIC_PAGES = {"console.log_in", "console.log_out", "console.change_theme", "console.asset_file"}
PAGES = EXAMPLES | {
    "version": "1", "name": "traffic", "action": "kill", "unit": "0" * 32, "chart": "days",
}  # fmt: skip


def test_every_page_asks_for_a_login_and_every_form_for_its_token(web: Web) -> None:
    rules = [one for one in web.app.url_map.iter_rules() if one.endpoint.startswith("console.")]
    assert len(rules) > 20
    adapter = web.app.url_map.bind("localhost")
    for rule in rules:
        path = adapter.build(rule.endpoint, {one: PAGES[one] for one in rule.arguments})
        methods = rule.methods or set()
        if "POST" in methods:
            for scope in (None, "manage"):
                sent = web.call("POST", path, scope=scope, data={"csrf_token": "forged"})
                assert sent.status_code == 403, (path, "an API key opens no page")
        if "GET" in methods and rule.endpoint not in PUBLIC_PAGES:
            for scope in (None, "manage"):
                seen = web.call("GET", path, scope=scope)
                assert seen.status_code == 302, path
                assert seen.headers["Location"].startswith("/login"), path


def test_a_key_that_is_not_exactly_right_is_refused(web: Web) -> None:
    _, _, public_id, secret = web.keys["read"].split("_", 3)
    wrong = [
        "", "Bearer", "Bearer x", "Basic YTpi", "Bearer bk_live_aaaaaaaa_" + "x" * 43,
        f"Bearer bk_live_{public_id}_" + "x" * 43, f"Bearer bk_live_{public_id}_",
        f"bk_live_{public_id}_{secret}", f"Bearer bk_live_{public_id}_{secret}x",
        f"Bearer bk_live_{public_id}_{secret[:-1]}", f"Bearer bk_live_{public_id}_{secret}\x00",
    ]  # fmt: skip
    calls = (("GET", "/v1/campaigns"), ("GET", "/metrics"), ("POST", "/v1/outcomes"))
    for value in wrong:
        for method, path in calls:
            refused = web.call(method, path, scope=None, headers={"Authorization": value})
            problem(refused, 401)
            assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_key_is_shown_once_works_and_can_be_revoked(web: Web) -> None:
    made = web.call("POST", "/v1/keys", json={"name": "till", "scopes": ["read", "decide"]})
    assert made.status_code == 201
    key = made.get_json()
    assert key["scopes"] == ["decide", "read"]
    assert key["created_by"].startswith("key:")
    web.keys["till"] = key["api_key"]
    assert web.call("GET", "/v1/campaigns", scope="till").status_code == 200
    web.loop.carry()
    assert web.call("GET", "/metrics", scope="till").status_code == 200

    secret = key["api_key"].split("_", 3)[3]
    with db.transaction(web.engine) as session:
        stored = session.scalars(select(ApiKey).where(ApiKey.name == "till")).one()
        assert stored.secret_sha256 == security.digest(secret)
    for path in ("/v1/keys", "/v1/audit"):
        scope = "manage" if path == "/v1/keys" else "read"
        assert secret not in web.call("GET", path, scope=scope).get_data(as_text=True)

    gone = web.call("DELETE", f"/v1/keys/{key['id']}").get_json()
    assert gone["revoked_at"]
    assert web.call("DELETE", f"/v1/keys/{key['id']}").get_json() == gone
    problem(web.call("GET", "/v1/campaigns", scope="till"), 401)
    web.loop.carry()
    problem(web.call("GET", "/metrics", scope="till"), 401)
    problem(web.call("DELETE", "/v1/keys/zzzzzzzz"), 404)
    assert fields(web.call("POST", "/v1/keys", json={"name": "x", "scopes": []})) == ["scopes"]
    bad = web.call("POST", "/v1/keys", json={"name": "x", "scopes": ["root"]})
    assert fields(bad) == ["scopes[0]"]


def _user(web: Web, **changes: str) -> dict[str, object]:
    body = {"email": "Ana@Shop.example", "name": "Ana", "role": "admin",
            "password": "three calm otters"}  # fmt: skip
    reply = web.call("POST", "/v1/users", json=body | changes)
    assert reply.status_code == 201, reply.get_data(as_text=True)
    made: dict[str, object] = reply.get_json()
    return made


def test_users_are_made_changed_and_kept_out(web: Web) -> None:
    ana = _user(web)
    assert ana["email"] == "ana@shop.example"
    assert "password" not in str(ana)
    with db.transaction(web.engine) as session:
        assert users.authenticate(session, " ANA@shop.example ", "three calm otters")
        assert users.authenticate(session, "ana@shop.example", "three calm otter") is None
        assert users.authenticate(session, "eve@shop.example", "three calm otters") is None
        assert session.scalars(select(User.password_hash)).one().startswith("scrypt:")

    twice = web.call("POST", "/v1/users", json={"email": "ana@shop.example", "name": "A",
                     "role": "analyst", "password": "0123456789"})  # fmt: skip
    assert fields(twice, 409) == ["email"]
    bad = {"email": "nobody", "name": "A", "role": "analyst", "password": "0123456789"}
    assert fields(web.call("POST", "/v1/users", json=bad)) == ["email"]
    weak = bad | {"email": "b@shop.example", "password": "short", "role": "king"}
    assert fields(web.call("POST", "/v1/users", json=weak)) == ["role", "password"]

    path = f"/v1/users/{ana['id']}"
    problem(web.call("PATCH", path, json={"disabled": True}), 409)
    problem(web.call("PATCH", path, json={"role": "analyst"}), 409)
    _user(web, email="bea@shop.example")
    assert web.call("PATCH", path, json={"role": "analyst"}).get_json()["role"] == "analyst"
    assert web.call("PATCH", path, json={"disabled": True}).get_json()["disabled_at"]
    with db.transaction(web.engine) as session:
        assert users.authenticate(session, "ana@shop.example", "three calm otters") is None
    assert web.call("PATCH", path, json={"disabled": False}).get_json()["disabled_at"] is None
    problem(web.call("PATCH", "/v1/users/999", json={}), 404)
    problem(web.call("PATCH", "/v1/users/99999999999", json={}), 404)


def test_a_password_changes_only_with_the_present_one(web: Web) -> None:
    path = f"/v1/users/{_user(web)['id']}/password"
    wrong = web.call("PUT", path, json={"current": "wrong", "new": "another long one"})
    assert fields(wrong, 403) == ["current"]
    right = {"current": "three calm otters", "new": "another long one"}
    assert web.call("PUT", path, json=right).status_code == 200
    with db.transaction(web.engine) as session:
        assert users.authenticate(session, "ana@shop.example", "another long one")
    log = web.call("GET", "/v1/audit", scope="read").get_data(as_text=True)
    assert "user.password" in log
    assert "another long one" not in log


def test_customers_are_known_by_pseudonym_only(web: Web) -> None:
    body = {"customers": [{"unit": "ana@shop.example", "attributes": {"age": 40, "vip": True}},
                          {"unit": "u2", "attributes": {}},
                          {"unit": "u2", "attributes": {"age": 1.5}}]}  # fmt: skip
    assert web.call("POST", "/v1/customers", json=body).get_json() == {"stored": 2}
    found = web.call("GET", "/v1/customers", scope="read", query_string={"unit": "u2"}).get_json()
    assert found["attributes"] == {"age": 1.5}
    assert len(found["unit"]) == 32
    problem(web.call("GET", "/v1/customers?unit=u3", scope="read"), 404)
    assert fields(web.call("GET", "/v1/customers", scope="read")) == ["unit"]
    replaced = {"customers": [{"unit": "u2", "attributes": {"size": "xl"}}]}
    web.call("POST", "/v1/customers", json=replaced)
    found = web.call("GET", "/v1/customers?unit=u2", scope="read").get_json()
    assert found["attributes"] == {"size": "xl"}
    with db.transaction(web.engine) as session:
        rows = session.scalars(select(Customer)).all()
        assert all(len(row.unit) == 16 and b"ana" not in row.unit for row in rows)
    many = {"customers": [{"unit": str(n), "attributes": {}} for n in range(1001)]}
    assert fields(web.call("POST", "/v1/customers", json=many)) == ["customers"]
