"""Pages of imports: what there is, files to add, what was found in one, and how it is undone."""

import itertools
from typing import Any, get_args

import flask
from flask import current_app, request
from sqlalchemy.orm import Session

from service import charts, security, shop
from service.errors import BarterError, FieldError, Invalid, NotFound
from service.imports import jobs, kinds
from service.imports.files import ENCODINGS
from service.models import Import
from service.views import console_quality as quality
from service.views import console_words as words
from service.views.console_admin import address
from service.views.console_base import (
    Reply,
    actor,
    database,
    field_messages,
    page,
    render,
    runtime,
)
from service.views.contract import MAX_FILE_BYTES
from service.views.imports import findings_of, rejects_file

ROWS = 20
REFUSED_ROWS = 50
MOVING = ("waiting", "reading")
KINDS: dict[str, tuple[str, str, str]] = {
    "transactions": (
        "Receipts",
        "What customers bought: one row per line of a receipt. Personas, lifetime value and"
        " elasticities are made of it, so begin here.",
        "customer_id,product_id,basket_id,quantity,paid,discount,date",
    ),
    "products": (
        "Products",
        "What you sell: a row replaces what was known of the item, gaps change nothing.",
        "product_id,name,category,price,cost,stock",
    ),
    "competitor_prices": (
        "Competitors’ prices",
        "What others ask for the same items: the newest price of each counts, for a week.",
        "product_id,competitor,price,at",
    ),
    "customers": (
        "Customers",
        "Who buys: every further column becomes an attribute that segments and features can read.",
        "customer_id,age,channel,newsletter",
    ),
    "interactions": (
        "Interactions",
        "What customers do besides buying: view, click, cart, purchase, review or return.",
        "customer_id,product_id,kind,value,at",
    ),
}
_ENCODINGS = {
    "utf-8": "UTF-8, as most programs write",
    "cp1252": "Windows (Western Europe)",
    "latin-1": "Latin-1",
    "utf-16": "UTF-16, “Unicode text” of Excel",
}
_DECIMALS = (("2", "2, such as 12.99"), ("0", "0, such as 1299"), ("1", "1"), ("3", "3"),
             ("4", "4"))  # fmt: skip


@page("/data", needs="read")
def data() -> Reply:
    """Show what was imported, and take more."""
    return _page()


@page("/data", needs="edit", methods=("POST",), takes_file=True)
def upload_file() -> Reply:
    """Take a file in, to be read in the background."""
    try:
        made = _taken()
    except BarterError as error:
        if error.status not in (413, 422):
            raise
        return _page(field_messages(error)), 422
    flask.flash(f"“{made.name}” is here and is being read. You may leave this page.", "good")
    return flask.redirect(flask.url_for("console.import_quality", import_id=made.id))


def _taken() -> Import:
    """Put the file of the form in line; raises Invalid with the field at fault."""
    form, file = request.form, request.files.get("file")
    kind = form.get("kind", "")
    if kind not in KINDS:
        raise _wrong("kind", "say what the rows of the file are")
    decimals = form.get("decimals", "2")
    settings = kinds.settings_of(
        [pair for pair in form.get("columns", "").replace(",", "\n").splitlines() if pair.strip()],
        decimals=int(decimals) if decimals.isdecimal() else -1,
        zone=form.get("zone", "").strip() or "UTC",
        encoding=form.get("encoding", "utf-8"),
    )
    if file is None or not file.filename:
        raise _wrong("file", "choose the file")
    config, engine = runtime().config, current_app.extensions["barter.engine"]
    received = jobs.receive(config, file.stream, limit=MAX_FILE_BYTES)
    if form.get("again") != "on":
        _refuse_repeats(received, kind)
    name = "".join(one for one in file.filename if one.isprintable())
    return jobs.accept(
        engine, config, received, kind=kind, name=name, settings=settings, actor=actor()
    )


def _refuse_repeats(received: jobs.Received, kind: str) -> None:
    with database() as session:
        before = jobs.earlier(session, received, kind=kind)
    if before is not None and before.state != "failed":
        received.path.unlink(missing_ok=True)
        raise Invalid(
            errors=[FieldError("again", "this very file was imported on"
                    f" {words.moment(before.created_at, 'UTC')} UTC; tick here and choose it again"
                    " to read it once more")]
        )  # fmt: skip


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(message, errors=[FieldError(field, message)])


def _page(errors: dict[str, str] | None = None) -> str:
    key, cursor = runtime().config.key("cursor"), request.args.get("cursor")
    before = security.read_cursor(key, "console imports", cursor) if cursor else None
    with database() as session:
        found = jobs.listing(session, before=before, limit=ROWS + 1)
        counted = shop.counts(session)
    older = None
    if len(found) > ROWS:
        older = address(cursor=security.sign_cursor(key, "console imports", found[ROWS - 1].id))
    settings = found[0].settings if found else {}
    usual = {name: str(settings[name]) for name in ("zone", "decimals", "encoding") if settings}
    return render(
        "data.html",
        cards=_cards(counted),
        rows=[_row(job) for job in found[:ROWS]],
        moving=any(job.state in MOVING for job in found),
        older=older,
        newer=address(cursor=None) if cursor else None,
        kinds=KINDS,
        encodings=[(name, _ENCODINGS[name]) for name in ENCODINGS],
        decimals=_DECIMALS,
        limit=MAX_FILE_BYTES,
        form=request.form.to_dict() if errors else usual,
        errors=errors or {},
    )


def _cards(counted: dict[str, shop.Count]) -> list[dict[str, str]]:
    names = {
        "customers": ("Customers", "with attributes"),
        "products": ("Products", "in the catalogue"),
        "transactions": ("Receipt lines", "bought"),
        "interactions": ("Interactions", "views, clicks and the like"),
    }
    return [
        {
            "name": name,
            "value": words.count(counted[kind].rows),
            "note": note if counted[kind].exact else f"about, {note}",
        }
        for kind, (name, note) in names.items()
    ]


def _row(job: Import) -> dict[str, Any]:
    worst = findings_of(job)[0].kind if job.state == "done" and job.rows else None
    return {
        "job": job,
        "kind": KINDS[job.kind][0],
        "health": worst,
        "by": job.actor.removeprefix("user:"),
    }


@page("/data/progress.json", needs="read")
def imports_progress() -> Reply:
    """Send what changes on the page of imports while files are read."""
    with database() as session:
        found = jobs.listing(session, before=None, limit=ROWS)
        counted = shop.counts(session)
    parts = {f"import-{job.id}": render("data_state.html", **_row(job)) for job in found}
    parts["cards"] = render("live_figures.html", figures=_cards(counted))
    return flask.jsonify(parts=parts, moving=any(job.state in MOVING for job in found))


# ---------------------------------------------------------------- one import


@page("/data/<id:import_id>", needs="read")
def import_quality(import_id: int) -> Reply:
    """Show what was found in a file."""
    with database() as session:
        job = jobs.get(session, import_id)
        refused = list(itertools.islice(jobs.rejects(session, import_id), REFUSED_ROWS))
        money = shop.money(session)
    return render(
        "import.html",
        **_row(job),
        moving=job.state in MOVING,
        verdict=quality.verdict(job),
        figures=quality.figures(job),
        findings=quality.remarks(job),
        charts=quality.charts(job, money.currency),
        specs=drawable(quality.specs(job, money.currency)),
        fields=quality.fields(job),
        refused=refused,
        undoable=job.kind in jobs.UNDOABLE and job.state != "undone",
        size=quality.size(job.bytes),
    )


@page("/data/<id:import_id>/progress.json", needs="read")
def import_progress(import_id: int) -> Reply:
    """Send how far one import is."""
    with database() as session:
        job = jobs.get(session, import_id)
    parts = {
        "state": render("data_state.html", **_row(job)),
        "figures": render("live_figures.html", figures=quality.figures(job)),
    }
    return flask.jsonify(parts=parts, moving=job.state in MOVING)


@page("/data/<id:import_id>/charts/<chart>.svg", needs="read")
def import_picture(import_id: int, chart: str) -> Reply:
    """Draw one chart of an import on the server, for browsers without scripts."""
    with database() as session:
        job = jobs.get(session, import_id)
        money = shop.money(session)
    return picture(quality.specs(job, money.currency).get(chart))


def picture(spec: charts.Spec | None) -> Reply:
    """Return a chart as SVG in the theme that was asked for; raises NotFound without one."""
    if spec is None:
        raise NotFound("There is no such chart.")
    # vl-convert starts a JavaScript engine, which most processes never need.
    import vl_convert

    theme: charts.Theme = "dark" if request.args.get("theme") == "dark" else "light"
    drawn = vl_convert.vegalite_to_svg(charts.themed(spec, theme))
    return flask.Response(drawn, mimetype="image/svg+xml")


def drawable(specs: dict[str, charts.Spec]) -> dict[str, Any]:
    """Return charts with the colours of both themes, as `charts.js` reads them."""
    return {
        "charts": specs,
        "themes": {name: charts.theme(name) for name in get_args(charts.Theme)},
    }


@page("/data/<id:import_id>/refused.csv", needs="read")
def refused_rows(import_id: int) -> Reply:
    """Send which rows were refused, and why."""
    with database() as session:
        return rejects_file(session, import_id)


@page("/data/<id:import_id>/undo", needs="edit", methods=("GET", "POST"))
def undo_import(import_id: int) -> Reply:
    """Ask, then take back what an import added."""
    back = flask.url_for("console.import_quality", import_id=import_id)
    if request.method == "POST":
        with database() as session:
            job = jobs.undo(session, import_id, actor=actor())
        flask.flash(f"“{job.name}” is taken back.", "good")
        return flask.redirect(back)
    with database() as session:
        job = _undoable(session, import_id)
    return render(
        "confirm.html",
        question=f"Take “{job.name}” back?",
        consequences=_consequences(job),
        button="Take it back",
        dangerous=True,
        back=back,
        steps=[("Data", flask.url_for("console.data")), (job.name, back), ("Undo", None)],
        errors={},
    )


def _undoable(session: Session, import_id: int) -> Import:
    """Return an import that can be undone; raises Conflict for one that cannot."""
    job = jobs.get(session, import_id)
    jobs.check_undoable(job)
    return job


def _consequences(job: Import) -> list[tuple[str, str]]:
    what = "receipt lines" if job.kind == "transactions" else "interactions"
    return [
        ("What goes", f"The {words.count(job.stored)} {what} that this file added."),
        ("What stays", "Rows that were there before, or came with another file."),
        ("Afterwards", "The same file can be imported again."),
    ]
