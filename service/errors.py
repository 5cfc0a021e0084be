"""Every way in which Barter refuses, as one tree; each leaf is one RFC 9457 problem type.

::

    BarterError
    ├── Malformed             400  the body is not JSON
    ├── Unauthorised          401  no valid key
    ├── Forbidden             403  a valid key without the scope
    ├── NotFound              404
    │   ├── UnknownCampaign, UnknownDecision, UnknownKey, UnknownUser, UnknownCustomer
    ├── Conflict              409  not possible in the present state
    │   ├── IdempotencyConflict
    ├── PreconditionFailed    412  somebody else has edited it meanwhile
    ├── TooLarge              413
    ├── UnsupportedMedia      415
    ├── Invalid               422  JSON, but not what the field takes
    ├── PreconditionRequired  428  If-Match is missing
    ├── TooMany               429
    └── Unavailable           503  Postgres cannot be reached; decisions go on

The text of an error is for the caller: it says what is wrong and what would be right, and never
repeats a secret or the database's own words.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple


class FieldError(NamedTuple):
    """One field that was refused: its path such as ``decisions[3].unit``, and why."""

    field: str
    message: str


class BarterError(Exception):
    """The request could not be answered."""

    status: int = 500
    title: str = "The service failed to answer"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.detail = detail or (type(self).__doc__ or "").split("\n")[0]
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        super().__init__(self.detail)

    def problem(self, *, instance: str | None = None) -> dict[str, Any]:
        """Return the problem document (RFC 9457): type, title, status, detail, errors.

        ``instance`` identifies this occurrence, so that a caller can quote it.
        """
        return problem(self.status, self.title, self.detail, errors=self.errors, instance=instance)


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    instance: str | None = None,
) -> dict[str, Any]:
    """Build a problem document; ``type`` stays ``about:blank``, so ``status`` says which.

    >>> problem(404, "Not found", "There is no such campaign.")["status"]
    404
    """
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "errors": [error._asdict() for error in errors],
    }
    if instance is not None:
        document["instance"] = instance
    return document


def in_list(field: str, place: int | None) -> str:
    """Return the path of a decision's field, in a list of decisions if ``place`` says where.

    >>> in_list("unit", 3), in_list("unit", None)
    ('decisions[3].unit', 'unit')
    """
    return field if place is None else f"decisions[{place}].{field}"


def phrase(status: int) -> str:
    """Return the standard words for an HTTP status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class Malformed(BarterError):
    """The body is not one JSON document."""

    status = 400
    title = "Malformed request"


class Unauthorised(BarterError):
    """Send a valid API key as: Authorization: Bearer bk_live_<id>_<secret>."""

    status = 401
    title = "Not authenticated"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="barter"'})


class Forbidden(BarterError):
    """The credentials do not permit this."""

    status = 403
    title = "Not permitted"


class NotFound(BarterError):
    """There is nothing at this address."""

    status = 404
    title = "Not found"


class UnknownCampaign(NotFound):
    """There is no such campaign."""

    def __init__(self, key: str, place: int | None = None) -> None:
        text = f'There is no campaign with the key "{key}".'
        super().__init__(text, errors=[FieldError(in_list("campaign", place), text)])


class UnknownDecision(NotFound):
    """There is no such decision."""

    def __init__(self, decision_id: object) -> None:
        super().__init__(
            f"There is no decision {decision_id}. A decision made a moment ago appears here"
            " as soon as it has reached the database."
        )


class UnknownKey(NotFound):
    """There is no such API key."""


class UnknownUser(NotFound):
    """There is no such user."""


class UnknownCustomer(NotFound):
    """Nothing is stored about this unit."""


class Conflict(BarterError):
    """The present state does not allow it."""

    status = 409
    title = "Conflict"


class IdempotencyConflict(Conflict):
    """A request id was used before for another request."""

    def __init__(self, place: int | None = None) -> None:
        text = "This request id was used before for another request; use a new one."
        super().__init__(text, errors=[FieldError(in_list("request_id", place), text)])


class PreconditionFailed(BarterError):
    """Somebody else has changed it since you read it: read it again, then repeat your change."""

    status = 412
    title = "Changed meanwhile"


class TooLarge(BarterError):
    """The body is larger than the service takes."""

    status = 413
    title = "Request too large"


class UnsupportedMedia(BarterError):
    """Send the body as application/json."""

    status = 415
    title = "Unsupported content type"


class Invalid(BarterError):
    """Some fields cannot be taken as they are."""

    status = 422
    title = "Invalid fields"


class PreconditionRequired(BarterError):
    """Send If-Match with the ETag of the version that you read."""

    status = 428
    title = "Precondition required"


class TooMany(BarterError):
    """Too many requests: wait, then try again."""

    status = 429
    title = "Too many requests"


class Unavailable(BarterError):
    """The database cannot be reached just now; decisions and outcomes are still taken."""

    status = 503
    title = "Temporarily unavailable"

    def __init__(self, detail: str = "", *, retry_after_seconds: int = 2) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})
