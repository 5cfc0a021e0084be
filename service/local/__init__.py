"""Deciding in the caller's own process: the same code and the same answers, without a network hop.

    from service.client import LocalClient

    barter = LocalClient("https://barter.shop.example", "bk_live_…", ["spring-sale"], folder=data)
    decision = barter.decide("spring-sale", "customer-42", {"visits": 14})
    barter.outcome(decision.decision_id, "purchased", revenue_minor=4200, event_id=order_id)

A `LocalClient` is one more host that decides (`service.runtime.Host`), with HTTP in the carrier's
place: `Feed` brings campaigns and snapshots down, and takes decisions and outcomes up out of the
same durable local log that the server has (`service.spool`). Hence a request id repeats, a crash
loses nothing that was acknowledged, and what was brought down serves on while the server is away.

What one process cannot know alone it asks of the server; `service/README.md` has the table.
"""

from service.local.client import LocalClient, Status

__all__ = ["LocalClient", "Status"]
