"""For load balancers, monitoring and developers: health, metrics, the API's own description."""

import re
from typing import Any

import orjson
from flask import Response, current_app, render_template
from markupsafe import Markup, escape

from service import metrics
from service.errors import Unavailable
from service.views.contract import Api, Call
from service.views.shapes import HealthReply, ReadyReply

api = Api("ops", tag="Operations")


@api.route("GET", "/healthz", scope=None, reply=HealthReply)
def get_health(call: Call) -> HealthReply:
    """Tell that this process answers."""
    return HealthReply()


@api.route("GET", "/readyz", scope=None, reply=ReadyReply, fails=(503,), hot=True)
def get_ready(call: Call) -> ReadyReply:
    """Tell whether this process can decide.

    It can as soon as it knows the campaigns and keys; that Postgres is away does not matter.
    """
    status = call.runtime.catalogue.status()
    if not status["loaded"]:
        raise Unavailable("The campaigns have not been loaded yet.", retry_after_seconds=1)
    return ReadyReply(catalogue=status)


@api.route(
    "GET", "/metrics", scope="read", reply=None, hot=True,
    media={"text/plain": {"type": "string"}},
)  # fmt: skip
def get_metrics(call: Call) -> Response:
    """Read counters and latencies in Prometheus' text format, summed over this host's workers."""
    return Response(metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")


@api.route(
    "GET", "/openapi.json", scope=None, reply=None,
    media={"application/json": {"type": "object"}},
)  # fmt: skip
def get_openapi(call: Call) -> Response:
    """Read the description of this API (OpenAPI 3.1)."""
    return Response(current_app.extensions["barter.openapi"], mimetype="application/json")


@api.route("GET", "/docs", scope=None, reply=None, media={"text/html": {"type": "string"}})
def get_docs(call: Call) -> Response:
    """Read the description of this API as a page."""
    described: dict[str, Any] = orjson.loads(current_app.extensions["barter.openapi"])
    page = render_template("docs.html", api=described, sections=_sections(described), prose=_prose)
    return Response(page)


def _sections(described: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the operations by tag, each with its method and path."""
    found: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in described["tags"]}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            found[operation["tags"][0]].append(operation | {"method": method, "path": path})
    return found


def _prose(text: str) -> Markup:
    """Return the little Markdown that our descriptions use as HTML: paragraphs, bold, code."""
    safe = str(escape(text))
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    marked = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)
    paragraphs = "".join(f"<p>{part}</p>" for part in marked.split("\n\n"))
    return Markup(paragraphs)
