"""The API of data: files to import, what became of them, and lists of up to a thousand rows."""

import csv
import datetime as dt
import io
from typing import Annotated, Any, Literal

from flask import Response, current_app, request
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints
from sqlalchemy.orm import Session

from service.definition import Document
from service.imports import jobs, kinds, load, quality
from service.imports.kinds import KindName, Settings
from service.models import Import
from service.views.contract import MAX_FILE_BYTES, Api, Call, Reply
from service.views.shapes import MAX_UNITS, Page, utc

api = Api("imports", tag="Data")
FILES = ("text/csv", "application/vnd.apache.parquet", "application/octet-stream")
IMPORT = "/v1/imports/<id:import_id>"

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Minor = Annotated[int, Field(ge=0, le=10**15)]
Encoding = Literal["utf-8", "cp1252", "latin-1", "utf-16"]


def _past(moment: dt.datetime) -> dt.datetime:
    now = dt.datetime.now(dt.UTC)
    if not dt.datetime(1970, 1, 1, tzinfo=dt.UTC) <= moment <= now + dt.timedelta(days=1):
        raise ValueError("must lie between 1970 and now")
    return moment


Past = Annotated[AwareDatetime, AfterValidator(_past)]


class ImportQuery(Document):
    """What a file holds and how its values are meant."""

    kind: KindName = Field(description="What its rows are.")
    name: Name = Field("upload", description="What people call the file.")
    columns: str = Field(
        "", max_length=2000,
        description="Columns that are called otherwise, as `Kunde=unit,Preis=paid`.",
    )  # fmt: skip
    decimals: Annotated[int, Field(ge=0, le=4, description="Digits of the currency.")] = 2
    zone: str = Field("UTC", max_length=64, description="IANA zone of times without one.")
    encoding: Encoding = Field("utf-8", description="Of a CSV file.")


class FindingReply(Document):
    """One sentence about the data."""

    kind: Literal["good", "info", "warn", "bad"]
    text: str


class FileImportReply(Document):
    """An import: how far it is, and what was found in the file."""

    id: int
    kind: KindName
    name: str
    state: Literal["waiting", "reading", "done", "failed", "undone"]
    progress: float = Field(description="From 0 to 1.")
    rows: int = Field(description="Read so far.")
    stored: int = Field(description="New, or changed.")
    known: int = Field(description="Stored before, or repeated.")
    rejected: int = Field(description="Refused, see `/rejects`.")
    error: str | None
    findings: tuple[FindingReply, ...]
    created_at: dt.datetime
    finished_at: dt.datetime | None

    @classmethod
    def of(cls, job: Import) -> "FileImportReply":
        """Return the reply about an import."""
        held = {name: getattr(job, name) for name in (
            "id", "kind", "name", "state", "progress", "rows", "stored", "known", "rejected",
            "error",
        )}  # fmt: skip
        told = tuple(FindingReply(kind=one.kind, text=one.text) for one in findings_of(job))  # type: ignore[arg-type]
        return cls(
            **held,
            findings=told,
            created_at=utc(job.created_at),
            finished_at=None if job.finished_at is None else utc(job.finished_at),
        )


class FileImportList(Document):
    """Imports, newest first."""

    imports: tuple[FileImportReply, ...]
    next: str | None


class StoredReply(Document):
    """How many rows of a list were news."""

    stored: int = Field(description="New, or changed.")
    known: int = Field(description="Stored before, or repeated.")


class ProductItem(Document):
    """One item; what is left out stays as it was."""

    id: Name
    name: Name | None = None
    category: Name | None = None
    department: Name | None = None
    price_minor: Minor | None = Field(None, description="List price in minor units.")
    unit_cost_minor: Minor | None = Field(None, description="What it costs the shop.")
    stock: Annotated[int, Field(ge=0, le=kinds.STOCK)] | None = Field(
        None, description="Pieces in stock."
    )


class CompetitorPriceItem(Document):
    """What a competitor asked for an item; of each item and competitor the newest counts."""

    product_id: Name
    competitor: Name = Field(description="Who asks it.")
    price_minor: Annotated[int, Field(gt=0, le=10**15)] = Field(
        description="What they ask, in minor units of your own currency."
    )
    at: Past = Field(description="When it was seen, with a zone.")


class InteractionItem(Document):
    """One thing that a customer did with an item; `id` makes a repeat harmless."""

    id: Name | None = Field(None, description="The event's own key; else made of what it says.")
    unit: Name = Field(description="The customer, kept as a pseudonym only.")
    product_id: Name
    kind: Literal["view", "click", "cart", "purchase", "review", "return"]
    value: Annotated[float, Field(ge=-1e6, le=1e6)] | None = Field(
        None, description="Of a review: its score."
    )
    at: Past = Field(description="When, with a zone.")


class TransactionItem(Document):
    """One line of a receipt; `id` makes a repeat harmless."""

    id: Name | None = Field(None, description="The line's own key; else made of what it says.")
    unit: Name = Field(description="The customer, kept as a pseudonym only.")
    product_id: Name
    basket: Name | None = Field(None, description="The receipt; else unit and day.")
    quantity: Annotated[int, Field(ge=1, le=kinds.QUANTITY)] = 1
    paid_minor: Minor = Field(description="Paid for the line, after the discount.")
    discount_minor: Minor = 0
    bought_at: Past = Field(description="When, with a zone.")


class ProductsBody(Document):
    """Up to a thousand items."""

    products: Annotated[tuple[ProductItem, ...], Field(min_length=1, max_length=MAX_UNITS)]


class CompetitorPricesBody(Document):
    """Up to a thousand prices."""

    prices: Annotated[tuple[CompetitorPriceItem, ...], Field(min_length=1, max_length=MAX_UNITS)]


class InteractionsBody(Document):
    """Up to a thousand interactions."""

    interactions: Annotated[tuple[InteractionItem, ...], Field(min_length=1, max_length=MAX_UNITS)]


class TransactionsBody(Document):
    """Up to a thousand lines of receipts."""

    transactions: Annotated[tuple[TransactionItem, ...], Field(min_length=1, max_length=MAX_UNITS)]


def findings_of(job: Import) -> list[quality.Finding]:
    """Return what there is to say about an import's data."""
    return quality.findings(
        quality.Quality.of(job.quality),
        rows=job.rows,
        stored=job.stored,
        known=job.known,
        rejected=job.rejected,
        kind=kinds.kind(job.kind),
        decimals=job.settings["decimals"],
    )


@api.route(
    "POST", "/v1/imports", scope="manage", reply=FileImportReply, status=202, files=FILES,
    gives=("Location",),
)  # fmt: skip
def import_file(call: Call, query: ImportQuery) -> Reply:
    """Import a CSV or Parquet file of up to 1 GiB.

    The file is the body. It is checked at once (422 says what is wrong with its columns) and read
    in the background: `GET` the address in `Location` until `state` is `done` or `failed`. Bad rows
    are refused one by one; the same file twice adds nothing. For larger files use `barter import`.
    """
    settings = _settings(query)
    received = jobs.receive(call.runtime.config, request.stream, limit=MAX_FILE_BYTES)
    job = jobs.accept(
        current_app.extensions["barter.engine"], call.runtime.config, received,
        kind=query.kind, name=query.name, settings=settings, actor=call.actor,
    )  # fmt: skip
    return Reply(FileImportReply.of(job), {"Location": f"/v1/imports/{job.id}"})


@api.route("GET", "/v1/imports", scope="read", reply=FileImportList)
def list_imports(call: Call, query: Page) -> FileImportList:
    """List imports, newest first."""
    with call.transaction() as session:
        found = jobs.listing(session, before=call.start("imports", query), limit=query.limit + 1)
        return FileImportList(
            imports=tuple(FileImportReply.of(one) for one in found[: query.limit]),
            next=call.next("imports", query, [one.id for one in found]),
        )


@api.route("GET", IMPORT, scope="read", reply=FileImportReply, fails=(404,))
def get_import(call: Call, import_id: int) -> FileImportReply:
    """Read how far an import is and what was found in its file."""
    with call.transaction() as session:
        return FileImportReply.of(jobs.get(session, import_id))


@api.route(
    "GET", f"{IMPORT}/rejects", scope="read", reply=None, fails=(404,),
    media={"text/csv": {"type": "string", "description": "line, field, reason"}},
)  # fmt: skip
def get_rejects(call: Call, import_id: int) -> Response:
    """Read which rows were refused, and why, as CSV.

    The first 10,000, by their line in the file: line, field, reason. The rows themselves are not
    kept, because they may name a customer.
    """
    with call.transaction() as session:
        return rejects_file(session, import_id)


@api.route("POST", f"{IMPORT}/undo", scope="manage", reply=FileImportReply, fails=(404, 409))
def undo_import(call: Call, import_id: int) -> FileImportReply:
    """Take back the interactions or receipts that an import added.

    Imports of customers, products and competitors' prices replace values and cannot be undone
    (409).
    """
    with call.transaction() as session:
        return FileImportReply.of(jobs.undo(session, import_id, actor=call.actor))


@api.route("POST", "/v1/products", scope="manage", reply=StoredReply)
def store_products(call: Call, body: ProductsBody) -> StoredReply:
    """Add or update items of the catalogue, up to 1,000 at once."""
    return _stored(call, "products", [one.model_dump() for one in body.products])


@api.route("POST", "/v1/competitor-prices", scope="manage", reply=StoredReply)
def store_competitor_prices(call: Call, body: CompetitorPricesBody) -> StoredReply:
    """Tell what competitors ask for your items, up to 1,000 at once.

    Of each item and competitor the newest price counts. Decisions that name a product know the
    lowest one that was seen within seven days.
    """
    return _stored(call, "competitor_prices", [one.model_dump() for one in body.prices])


@api.route("POST", "/v1/interactions", scope="reward", reply=StoredReply)
def store_interactions(call: Call, body: InteractionsBody) -> StoredReply:
    """Report what customers did with items, up to 1,000 at once.

    All of them are stored, or none. Repeats of an `id` change nothing.
    """
    return _stored(call, "interactions", [one.model_dump() for one in body.interactions])


@api.route("POST", "/v1/transactions", scope="reward", reply=StoredReply)
def store_transactions(call: Call, body: TransactionsBody) -> StoredReply:
    """Report lines of receipts, up to 1,000 at once.

    All of them are stored, or none. Repeats of an `id` change nothing.
    """
    return _stored(call, "transactions", [one.model_dump() for one in body.transactions])


def _stored(call: Call, kind: KindName, rows: list[dict[str, Any]]) -> StoredReply:
    make = kinds.maker(kinds.kind(kind), call.runtime.config.key("unit"), None)
    made = [make(row) for row in rows]
    with call.transaction() as session:
        news = load.take(session.connection(), kind, made)
    return StoredReply(stored=news, known=len(made) - news)


def _settings(query: ImportQuery) -> Settings:
    pairs = [pair for pair in query.columns.split(",") if pair.strip()]
    return kinds.settings_of(
        pairs, decimals=query.decimals, zone=query.zone, encoding=query.encoding
    )


def rejects_file(session: Session, import_id: int) -> Response:
    """Return the refused rows of an import as a CSV file to download."""
    jobs.get(session, import_id)
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(("line", "field", "reason"))
    lines.writerows((one.line, one.field, one.message) for one in jobs.rejects(session, import_id))
    response = Response(text.getvalue(), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="refused-{import_id}.csv"'
    return response
