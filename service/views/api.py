"""What app servers call: ask for arms, report outcomes. Nothing here waits for Postgres."""

import msgspec
from flask import Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from service import arrow, bulk, metrics
from service.decide import decide
from service.errors import BarterError, FieldError, Invalid, TooLarge, UnknownCampaign
from service.messages import (
    DecisionList,
    DecisionReplies,
    DecisionReply,
    DecisionRequest,
    OutcomeList,
    OutcomeReceipt,
    OutcomeRequest,
    PlainList,
)
from service.outcomes import record
from service.validation import parse
from service.views import streams
from service.views.contract import JSON, Api, Call
from service.views.examples import DECISIONS, OUTCOMES

api = Api("api", tag="Serving")
MAX_IDEMPOTENCY_KEY = 200


@api.route(
    "POST",
    "/v1/decisions",
    scope="decide",
    reply=(DecisionReply, DecisionReplies),
    fails=(404, 409),
    takes=("Idempotency-Key",),
    examples=DECISIONS,
    hot=True,
    plain=PlainList.read,
    streams={arrow.MEDIA: arrow.MAX_BYTES, streams.MEDIA: None},
    media={kind: {"type": "string", "format": "binary"} for kind in (arrow.MEDIA, streams.MEDIA)},
)
def create_decisions(
    call: Call, body: DecisionRequest | DecisionList | PlainList | None
) -> DecisionReply | Response:
    """Ask which arm a unit gets: one, up to 1,000 as JSON, 10,000 in Arrow, any number by lines.

    Every request gets an answer: a campaign that is not running, a unit in the holdout and a unit
    for which no arm is eligible get the default arm, and `reason` says so. `propensity` is the
    exact probability that the arm was drawn with. The decision is on disk before you read the
    reply, and Postgres need not be up; where the host waits for Postgres to commit, `acknowledged`
    says if it did not in time. Keep `decision_id`: outcomes are reported under it.

    A `request_id` (or, for one decision, the header Idempotency-Key) makes a repeat return the
    decision that was made first; using one again for another request gives 409. One unknown
    campaign in a list refuses the whole list.

    **Arrow.** `application/vnd.apache.arrow.stream` takes a table of up to 10,000 rows as an
    uncompressed IPC stream: `campaign` and `unit`, where wanted `request_id`, `product`,
    `exclude_arms` and `products` (lists of text), and every further column is an attribute of
    that name: numbers, text or booleans; a null is unknown. The reply is a table with a row per
    request, in their order, or JSON where `Accept` says so.

    **Lines.** `application/x-ndjson` takes one request per line, of up to 64 KiB, and any number
    of lines; each is answered by one line, in their order, while you send on: the reply, or the
    problem document of a line that cannot be taken.
    """
    if body is None:
        _no_idempotency_key()
        return _streamed(call)
    if not isinstance(body, DecisionRequest):
        _no_idempotency_key()
        return _listed(_answered(call, body))
    try:
        (reply,) = decide(call.runtime, [with_key(body, request.headers.get("Idempotency-Key"))])
    except BarterError as error:
        error.errors = tuple(
            FieldError(one.field.removeprefix("decisions[0]."), one.message) for one in error.errors
        )
        raise
    metrics.count_decisions([reply])
    return reply


@api.route(
    "POST",
    "/v1/outcomes",
    scope="reward",
    reply=OutcomeReceipt,
    status=202,
    examples=OUTCOMES,
    hot=True,
)
def create_outcomes(call: Call, body: OutcomeRequest | OutcomeList) -> OutcomeReceipt:
    """Report what a customer did after a decision: one event, or up to 1,000 at once.

    Events may come late, repeatedly and in any order: `event_id` makes a repeat harmless, and the
    learner credits each event to its decision within a second. Amounts are the list value of the
    basket before the discount; Barter takes the discount off itself. 202 means: on disk, safe.
    Where the host waits for Postgres to commit it means that, and 503 to send it again under the
    same `event_id`.
    """
    events = body.outcomes if isinstance(body, OutcomeList) else (body,)
    receipt = record(call.runtime, events)
    metrics.count_outcomes(receipt)
    return receipt


def _streamed(call: Call) -> Response:
    """Answer a request that is a table, or lines."""
    if request.mimetype == streams.MEDIA:
        return Response(streams.answered(call.runtime, request.stream), mimetype=streams.MEDIA)
    try:
        raw = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise TooLarge(f"The body is larger than {arrow.MAX_BYTES:,} bytes.") from None
    answers = arrow.answer(call.runtime, raw)
    if request.accept_mimetypes.best_match((arrow.MEDIA, JSON), arrow.MEDIA) == JSON:
        return _listed(answers)
    metrics.count_tally(answers.tally())
    return Response(arrow.written(answers), mimetype=arrow.MEDIA)


def _listed(answers: bulk.Answers) -> Response:
    metrics.count_tally(answers.tally())
    return Response(answers.json(), mimetype=JSON)


def _answered(call: Call, body: DecisionList | PlainList) -> bulk.Answers:
    try:
        return bulk.answer(call.runtime, body.decisions)
    except UnknownCampaign:
        if isinstance(body, PlainList):
            parse(DecisionList, msgspec.json.encode(body))  # what is no key is told first
        raise


def with_key(body: DecisionRequest, key: str | None) -> DecisionRequest:
    """Return a request under the id that the header Idempotency-Key gives it, if it is there.

    Raises:
        Invalid: it is no such key, or the body says another one.
    """
    if key is None or key == body.request_id:
        return body
    if body.request_id is not None:
        raise _wrong_key("differs from request_id; send one of the two")
    if not (0 < len(key) <= MAX_IDEMPOTENCY_KEY and key.isprintable()):
        raise _wrong_key(f"must have 1 to {MAX_IDEMPOTENCY_KEY} printable characters")
    return body.model_copy(update={"request_id": key})


def _no_idempotency_key() -> None:
    if "Idempotency-Key" in request.headers:
        raise _wrong_key("is for one decision; in a list, give each its request_id")


def _wrong_key(message: str) -> Invalid:
    return Invalid(f"Idempotency-Key: {message}", errors=[FieldError("Idempotency-Key", message)])


__all__ = ["api", "with_key"]
