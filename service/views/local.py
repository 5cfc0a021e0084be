"""For clients that decide in their own process: what they decide by, and what they have decided."""

import base64

from flask import Response

from service.adopt import adopt
from service.errors import UnknownCampaign
from service.messages import LocalCampaign, LocalDecisions, LocalReceipt
from service.replay import live_at
from service.snapshots import LiveCampaign
from service.views.contract import Api, Call, Reply
from service.views.examples import LOCAL_DECISIONS

api = Api("local", tag="Local decisions")


@api.route(
    "GET",
    "/v1/local/campaigns/<key>",
    scope="local",
    reply=LocalCampaign,
    fails=(404,),
    takes=("If-None-Match",),
    gives=("ETag",),
    hot=True,
)
def read_local_campaign(call: Call, key: str) -> Reply | Response:
    """Read all that decisions of a campaign are made from.

    For clients that decide in their own process: the definition, what the policy has learnt, the
    seed of its draws and the key of the pseudonyms of units. Ask again with `If-None-Match` every
    second or so: as long as nothing has changed the answer is 304. It comes from memory, so
    Postgres need not be up. Decisions that were made of it go to `POST /v1/local/decisions`.
    """
    campaign = call.runtime.catalogue.campaign(key)
    if campaign is None:
        raise UnknownCampaign(key)
    if call.header("If-None-Match") == _tag(campaign, campaign.version):
        return Response(status=304, headers={"ETag": _tag(campaign, campaign.version)})
    stored = call.runtime.spool.read(f"snapshot:{campaign.id}")
    fitted = call.runtime.spool.read(f"fitted:{campaign.id}")
    version = int.from_bytes(stored[:8], "big")
    document = LocalCampaign(
        id=campaign.id,
        revision=campaign.revision,
        state=campaign.state,
        killed=campaign.killed,
        seed=campaign.seed.hex(),
        definition=campaign.definition,
        snapshot=version,
        learnt=_text(stored[8:]),
        fitted=_text(fitted),
        unit_key=call.runtime.config.key("unit").hex(),
    )
    return Reply(document, {"ETag": _tag(campaign, version)})


@api.route(
    "POST",
    "/v1/local/decisions",
    scope="local",
    reply=LocalReceipt,
    status=202,
    examples=LOCAL_DECISIONS,
    hot=True,
)
def adopt_local_decisions(call: Call, body: LocalDecisions) -> LocalReceipt:
    """Tell of decisions that a client has made in its own process: up to 1,000 at once.

    Every one is recomputed from its revision, snapshot, segment, mask, context and id; should one
    differ in anything, the whole list is refused, and `errors` says which and in what. The
    `decision_id` makes a repeat harmless. 202 means: on disk, safe. Postgres must be up only for
    decisions by snapshots that are no longer the newest.
    """

    def past(campaign: int, revision: int, snapshot: int) -> LiveCampaign:
        with call.transaction() as session:
            return live_at(session, campaign, revision, snapshot)

    return adopt(call.runtime, body.decisions, past=past)


def _tag(campaign: LiveCampaign, version: int) -> str:
    return f'"{campaign.revision}.{campaign.state}.{campaign.killed:d}.{version}"'


def _text(data: bytes) -> str | None:
    return base64.b64encode(data).decode() if data else None


__all__ = ["api"]
