"""What app servers call: ask for arms, report outcomes. Nothing here waits for Postgres."""

from flask import request

from service import metrics
from service.decide import decide
from service.errors import BarterError, FieldError, Invalid
from service.messages import (
    DecisionList,
    DecisionReplies,
    DecisionReply,
    DecisionRequest,
    OutcomeList,
    OutcomeReceipt,
    OutcomeRequest,
)
from service.outcomes import record
from service.views.contract import Api, Call
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
)
def create_decisions(
    call: Call, body: DecisionRequest | DecisionList
) -> DecisionReply | DecisionReplies:
    """Ask which arm a unit gets, for one unit or for up to 1,000 at once.

    Every request gets an answer: a campaign that is not running, a unit in the holdout and a unit
    for which no arm is eligible get the default arm, and `reason` says so. `propensity` is the
    exact probability that the arm was drawn with. The decision is on disk before you read the
    reply, and Postgres need not be up. Keep `decision_id`: outcomes are reported under it.

    A `request_id` (or, for one decision, the header Idempotency-Key) makes a repeat return the
    decision that was made first; using one again for another request gives 409. One unknown
    campaign in a list refuses the whole list.
    """
    if isinstance(body, DecisionList):
        _no_idempotency_key()
        replies = decide(call.runtime, body.decisions)
        metrics.count_decisions(replies)
        return DecisionReplies.model_construct(decisions=tuple(replies))
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
    """
    events = body.outcomes if isinstance(body, OutcomeList) else (body,)
    receipt = record(call.runtime, events)
    metrics.count_outcomes(receipt)
    return receipt


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
