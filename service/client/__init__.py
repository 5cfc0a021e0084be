"""The SDK: ask Barter for an arm, tell it what the customer did. Standard library only.

>>> from service.client import Client
>>> barter = Client("http://127.0.0.1:1", "bk_live_...", default_arm="none")
>>> decision = barter.decide("spring-sale", "customer-42")  # nobody listens there
>>> decision.arm, decision.is_default, decision.reason
('none', True, 'unavailable')

In a checkout::

    decision = barter.decide("spring-sale", customer_id)
    show(decision.offer)
    ...
    barter.outcome(decision.decision_id, "purchased", revenue_minor=4200, event_id=order_id)

Three promises. *Time*: a call takes at most ``timeout`` seconds, 0.3 unless told otherwise,
retries included (only a name server that does not answer, or a server that sends its headers drop
by drop, can exceed that).
*Safety*: it never raises into a checkout; without an answer, ``decide`` returns the default arm,
marked as such, and ``outcome`` returns False. *Once*: every request carries an idempotency key, so
a retry finds what the first attempt stored. Pass ``raise_errors=True`` to get exceptions instead.

`LocalClient` has the same calls and answers them in this process (`service.local`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from service.client.sdk import (
    Ask,
    Client,
    ClientError,
    Decision,
    Kind,
    OfferedProduct,
    Outcome,
    RefusedError,
    UnavailableError,
)
from service.client.transport import (
    HttpTransport,
    Request,
    Response,
    Transport,
    TransportError,
    WsgiTransport,
)

if TYPE_CHECKING:
    from service.local import LocalClient

__all__ = [
    "Ask",
    "Client",
    "ClientError",
    "Decision",
    "HttpTransport",
    "Kind",
    "LocalClient",
    "OfferedProduct",
    "Outcome",
    "RefusedError",
    "Request",
    "Response",
    "Transport",
    "TransportError",
    "UnavailableError",
    "WsgiTransport",
]


def __getattr__(name: str) -> Any:
    """Import `LocalClient` when it is asked for: it alone needs our other code, and numpy."""
    if name == "LocalClient":
        return importlib.import_module("service.local").LocalClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
