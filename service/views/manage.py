"""The management API: campaigns, the log, reports, customers, keys, users, the audit log.

Every view opens one transaction, makes one call and shapes the reply.
"""

import re
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
from flask import Response, request
from sqlalchemy.orm import Session

from bandits import policies
from service import campaigns, customers, history, keys, users
from service.definition import CampaignDefinition
from service.errors import PreconditionFailed, PreconditionRequired
from service.history import Filters
from service.replay import Irreproducible, replay
from service.reports import Report, campaign_report
from service.views import examples
from service.views.contract import Api, Call, Reply
from service.views.shapes import (
    AuditLog,
    AuditPage,
    AuditReply,
    CampaignList,
    CampaignReply,
    CustomerImport,
    CustomerReply,
    DecisionLog,
    DecisionsPage,
    DuplicateRequest,
    ExplanationReply,
    ImportReply,
    KeyList,
    KeyReply,
    KeyRequest,
    LoggedDecision,
    NewKeyReply,
    Page,
    PasswordChange,
    PolicyList,
    PolicyNowReply,
    PolicyReply,
    ReplayReply,
    ReportFormat,
    RevisionList,
    RevisionReply,
    SnapshotList,
    SnapshotReply,
    UnitQuery,
    UserChange,
    UserList,
    UserReply,
    UserRequest,
)

campaigns_api = Api("campaigns", tag="Campaigns")
log_api = Api("log", tag="Decision log")
customers_api = Api("customers", tag="Customers")
access_api = Api("access", tag="Access")
APIS = (campaigns_api, log_api, customers_api, access_api)

CAMPAIGN = "/v1/campaigns/<key:key>"
_REVISION = re.compile(r'"([0-9]{1,9})"')


@campaigns_api.route("GET", "/v1/campaigns", scope="read", reply=CampaignList)
def list_campaigns(call: Call, query: Page) -> CampaignList:
    """List campaigns, newest first.

    Follow `next` until it is null to see all of them.
    """
    with call.transaction() as session:
        found = history.campaigns(
            session, before=call.start("campaigns", query), limit=query.limit + 1
        )
        return CampaignList(
            campaigns=tuple(CampaignReply.of(one) for one in found[: query.limit]),
            next=call.next("campaigns", query, [one.id for one in found]),
        )


@campaigns_api.route(
    "POST", "/v1/campaigns", scope="manage", reply=CampaignReply, status=201, fails=(409,),
    gives=("ETag", "Location"), examples=examples.CAMPAIGN,
)  # fmt: skip
def create_campaign(call: Call, body: CampaignDefinition) -> Reply:
    """Create a campaign as a draft.

    Nothing is served from a draft: everyone gets the default arm until it is launched. Fields
    that are left out get the defaults that the schema names.
    """
    with call.transaction() as session:
        campaign = campaigns.create(session, body, actor=call.actor)
        return _tagged(campaign, created=True)


@campaigns_api.route(
    "GET", CAMPAIGN, scope="read", reply=CampaignReply, fails=(404,), gives=("ETag",)
)
def get_campaign(call: Call, key: str) -> Reply:
    """Read a campaign, its state and what can be done with it.

    The ETag is the revision: send it as If-Match when you replace the definition.
    """
    with call.transaction() as session:
        return _tagged(campaigns.get(session, key))


@campaigns_api.route(
    "PUT", CAMPAIGN, scope="manage", reply=CampaignReply, fails=(404, 409, 412, 428),
    takes=("If-Match",), gives=("ETag",), examples=examples.CAMPAIGN,
)  # fmt: skip
def replace_campaign(call: Call, key: str, body: CampaignDefinition) -> Reply:
    """Replace a campaign's definition.

    If-Match is required, so that two editors cannot overwrite each other unseen (412). After the
    launch, key, currency, objective, the keys and order of arms, and the keys, order and rules of
    segments are frozen, because what was learnt counts by them: 422 names each such field.
    Offers, names, caps, floors, schedule, holdout, budget and policy may still change. To change
    what is frozen, duplicate the campaign.
    """
    revision = _if_match(call, required=True)
    with call.transaction() as session:
        campaign = campaigns.update(session, key, body, actor=call.actor, revision=revision)
        return _tagged(campaign)


@campaigns_api.route(
    "DELETE", CAMPAIGN, scope="manage", reply=None, status=204, fails=(404, 409, 412),
    takes=("If-Match",),
)  # fmt: skip
def delete_campaign(call: Call, key: str) -> Reply:
    """Delete a draft.

    Only drafts can be deleted: the log of everything else must stay readable.
    """
    revision = _if_match(call, required=False)
    with call.transaction() as session:
        campaigns.delete(session, key, actor=call.actor, revision=revision)
    return Reply(None)


ACTION_DOCS: dict[campaigns.Action, str] = {
    "launch": """Launch a draft.

    With `starts_at` in the future the campaign is scheduled and begins by itself, else it runs
    at once. From here on the meaning of arms and segments is frozen.""",
    "pause": """Pause a campaign.

    Everyone gets the default arm until it is resumed; outcomes are still learnt.""",
    "resume": """Resume a paused campaign.

    It goes on from what it has learnt.""",
    "end": """End a campaign for good.

    Everyone gets the default arm; outcomes of decisions made so far are still learnt. An ended
    campaign cannot run again: duplicate it instead.""",
    "kill": """Kill a campaign that went wrong.

    It ends at once and stays marked as killed in reports and in the log.""",
}


def _declare(action: campaigns.Action) -> None:
    @campaigns_api.route(
        "POST", f"{CAMPAIGN}/{action}", scope="manage", reply=CampaignReply, fails=(404, 409),
        gives=("ETag",), name=f"{action}_campaign", doc=ACTION_DOCS[action],
    )  # fmt: skip
    def take_action(call: Call, key: str) -> Reply:
        with call.transaction() as session:
            return _tagged(campaigns.transition(session, key, action, actor=call.actor))


for _action in campaigns.ACTIONS:
    _declare(_action)


@campaigns_api.route(
    "POST", f"{CAMPAIGN}/duplicate", scope="manage", reply=CampaignReply, status=201,
    fails=(404, 409), gives=("ETag", "Location"), examples=examples.DUPLICATE,
)  # fmt: skip
def duplicate_campaign(call: Call, key: str, body: DuplicateRequest) -> Reply:
    """Copy a campaign into a new draft.

    The copy has the same definition under a new key, without schedule and without learning.
    """
    with call.transaction() as session:
        copy = campaigns.duplicate(session, key, body.key, actor=call.actor, name=body.name)
        return _tagged(copy, created=True)


@campaigns_api.route("GET", f"{CAMPAIGN}/revisions", scope="read", reply=RevisionList, fails=(404,))
def list_revisions(call: Call, key: str, query: Page) -> RevisionList:
    """List every definition that a campaign ever had, newest first."""
    listing = f"revisions {key}"
    with call.transaction() as session:
        found = history.revisions(
            session,
            campaigns.get(session, key),
            before=call.start(listing, query),
            limit=query.limit + 1,
        )
        return RevisionList(
            revisions=tuple(RevisionReply.of(one) for one in found[: query.limit]),
            next=call.next(listing, query, [one.revision for one in found]),
        )


@campaigns_api.route("GET", f"{CAMPAIGN}/snapshots", scope="read", reply=SnapshotList, fails=(404,))
def list_snapshots(call: Call, key: str, query: Page) -> SnapshotList:
    """List what the policy knew, snapshot by snapshot, newest first.

    The digest of a snapshot equals that of a rebuild from the log up to its positions.
    """
    listing = f"snapshots {key}"
    with call.transaction() as session:
        found = history.snapshots(
            session,
            campaigns.get(session, key),
            before=call.start(listing, query),
            limit=query.limit + 1,
        )
        return SnapshotList(
            snapshots=tuple(SnapshotReply.of(one) for one in found[: query.limit]),
            next=call.next(listing, query, [one.version for one in found]),
        )


@campaigns_api.route("GET", f"{CAMPAIGN}/policy", scope="read", reply=PolicyNowReply, fails=(404,))
def get_policy(call: Call, key: str) -> PolicyNowReply:
    """Read which policy serves a campaign now, since when and why.

    Where the definition says `auto`, `change` holds the evidence of the last change, and `rivals`
    what the log has said so far of the policies that may take over.
    """
    with call.transaction() as session:
        return PolicyNowReply.of(history.policy_now(session, campaigns.get(session, key)))


@campaigns_api.route(
    "GET", f"{CAMPAIGN}/report", scope="read", reply=Report, fails=(404,),
    media={"text/csv": {"type": "string", "description": "One row per arm and segment."}},
)  # fmt: skip
def get_report(call: Call, key: str, query: ReportFormat) -> Response:
    """Read what a campaign has learnt, earned and cost.

    Every interval holds whenever the report is opened, however often. The CSV form has one row
    per arm, over all segments first and then in each; ask for it with `?format=csv` or
    `Accept: text/csv`.
    """
    with call.transaction() as session:
        report = campaign_report(session, key)
    if _wants_csv(query):
        response = Response(report.to_csv(), mimetype="text/csv")
        response.headers["Content-Disposition"] = f'attachment; filename="{key}.csv"'
    else:
        response = Response(orjson.dumps(report.to_dict()), mimetype="application/json")
    response.headers["Vary"] = "Accept"
    return response


@campaigns_api.route("GET", "/v1/policies", scope="read", reply=PolicyList)
def list_policies(call: Call) -> PolicyList:
    """List the policies that a campaign may choose, with their options and bounds.

    Instead of one of them a campaign may name `auto`, which chooses among some of them by its log.
    """
    return PolicyList(
        policies=tuple(PolicyReply.model_validate(one.as_dict()) for one in policies.catalogue())
    )


@log_api.route("GET", f"{CAMPAIGN}/decisions", scope="read", reply=DecisionLog, fails=(404,))
def list_decisions(call: Call, key: str, query: DecisionsPage) -> DecisionLog:
    """Read a campaign's decision log, newest first.

    Filter by arm, segment, reason or unit; pages stay the same however many decisions arrive
    meanwhile. A page looks through 20,000 decisions at most, so one with few or none may still
    have a next. A decision appears as soon as it has reached the database, normally at once.
    """
    unit = None if query.unit is None else call.runtime.pseudonym(query.unit)
    filters = Filters(arm=query.arm, segment=query.segment, reason=query.reason, unit=unit)
    listing = f"decisions {key} {filters.name}"
    with call.transaction() as session:
        campaign = campaigns.get(session, key)
        found = history.decisions(
            session, campaign, filters, before=call.start(listing, query), limit=query.limit
        )
        lines = _lines(session, campaign, found.decisions)
        return DecisionLog(decisions=lines, next=call.cursor(listing, found.older))


@log_api.route(
    "GET", "/v1/decisions/<uuid:decision_id>", scope="read", reply=ExplanationReply, fails=(404,)
)
def get_decision(call: Call, decision_id: uuid.UUID) -> ExplanationReply:
    """Read why a decision fell as it did.

    Shows every arm with its probability or the reason why it could not be served, the features
    with the values that were used and what each did for the arm, what the customer did, and
    whether recomputing the decision from the log gives the same arm and the same probabilities,
    bit for bit.
    """
    with call.transaction() as session:
        found = history.explain(session, decision_id)
        again, influence = _replayed(session, found)
        return ExplanationReply.of(found, again, influence)


@customers_api.route(
    "POST", "/v1/customers", scope="manage", reply=ImportReply, examples=examples.CUSTOMERS
)
def import_customers(call: Call, body: CustomerImport) -> ImportReply:
    """Store what segment rules and features may read about units, up to 1,000 at once.

    What you send replaces what was stored about the unit. Units are kept under a keyed pseudonym
    only. Attributes that a decision request sends win over stored ones.
    """
    rows = [(call.runtime.pseudonym(one.unit), one.attributes) for one in body.customers]
    with call.transaction() as session:
        return ImportReply(stored=customers.upsert(session, rows, actor=call.actor))


@customers_api.route("GET", "/v1/customers", scope="read", reply=CustomerReply, fails=(404,))
def get_customer(call: Call, query: UnitQuery) -> CustomerReply:
    """Read what is stored about one unit."""
    unit = call.runtime.pseudonym(query.unit)
    with call.transaction() as session:
        return CustomerReply.of(unit, customers.get(session, unit))


@access_api.route("GET", "/v1/keys", scope="manage", reply=KeyList)
def list_keys(call: Call) -> KeyList:
    """List API keys, newest first, revoked ones too; secrets are not kept."""
    with call.transaction() as session:
        return KeyList(keys=tuple(KeyReply.of(key) for key in keys.listing(session)))


@access_api.route(
    "POST", "/v1/keys", scope="manage", reply=NewKeyReply, status=201, examples=examples.KEY
)
def create_key(call: Call, body: KeyRequest) -> NewKeyReply:
    """Make an API key with the scopes it needs, and no more.

    `api_key` is shown in this reply only. The key works within a second.
    """
    with call.transaction() as session:
        key, text = keys.create(session, name=body.name, scopes=body.scopes, actor=call.actor)
        return NewKeyReply.made(key, text)


@access_api.route(
    "DELETE", "/v1/keys/<public_id:public_id>", scope="manage", reply=KeyReply, fails=(404,)
)
def revoke_key(call: Call, public_id: str) -> KeyReply:
    """Revoke an API key for good.

    Management refuses it at once, decisions and outcomes within a second.
    """
    with call.transaction() as session:
        return KeyReply.of(keys.revoke(session, public_id, actor=call.actor))


@access_api.route("GET", "/v1/users", scope="manage", reply=UserList)
def list_users(call: Call) -> UserList:
    """List the people who may log in to the console, disabled ones too."""
    with call.transaction() as session:
        return UserList(users=tuple(UserReply.of(user) for user in users.listing(session)))


@access_api.route(
    "POST", "/v1/users", scope="manage", reply=UserReply, status=201, fails=(409,),
    examples=examples.USER,
)  # fmt: skip
def create_user(call: Call, body: UserRequest) -> UserReply:
    """Add a person who may log in to the console."""
    with call.transaction() as session:
        user = users.create(session, **body.model_dump(), actor=call.actor)
        return UserReply.of(user)


@access_api.route(
    "PATCH", "/v1/users/<id:user_id>", scope="manage", reply=UserReply, fails=(404, 409)
)
def change_user(call: Call, user_id: int, body: UserChange) -> UserReply:
    """Change a user's role, or disable or enable the user.

    The last enabled admin can neither be disabled nor lose the role (409).
    """
    with call.transaction() as session:
        user = users.find(session, user_id)
        if body.role is not None:
            user = users.change_role(session, user_id, body.role, actor=call.actor)
        if body.disabled is not None:
            change = users.disable if body.disabled else users.enable
            user = change(session, user_id, actor=call.actor)
        return UserReply.of(user)


@access_api.route(
    "PUT", "/v1/users/<id:user_id>/password", scope="manage", reply=UserReply, fails=(404,)
)
def change_password(call: Call, user_id: int, body: PasswordChange) -> UserReply:
    """Replace a user's password; needs the present one (403 when it is wrong)."""
    with call.transaction() as session:
        user = users.change_password(
            session, user_id, current=body.current, new=body.new, actor=call.actor
        )
        return UserReply.of(user)


@access_api.route("GET", "/v1/audit", scope="read", reply=AuditLog)
def list_audit(call: Call, query: AuditPage) -> AuditLog:
    """Read who did what to which thing, newest first."""
    listing = f"audit {query.subject!r} {query.actor!r}"
    with call.transaction() as session:
        found = history.audit_log(
            session,
            subject=query.subject,
            actor=query.actor,
            before=call.start(listing, query),
            limit=query.limit + 1,
        )
        return AuditLog(
            entries=tuple(AuditReply.of(one) for one in found[: query.limit]),
            next=call.next(listing, query, [one.id for one in found]),
        )


def _tagged(campaign: Any, *, created: bool = False) -> Reply:
    headers = {"ETag": f'"{campaign.revision}"'}
    if created:
        headers["Location"] = f"/v1/campaigns/{campaign.key}"
    return Reply(CampaignReply.of(campaign), headers)


def _if_match(call: Call, *, required: bool) -> int | None:
    """Return the revision that the caller has seen; ``None`` where any will do."""
    given = call.header("If-Match")
    if given is None:
        if required:
            raise PreconditionRequired()
        return None
    if given.strip() == "*":
        return None
    found = _REVISION.fullmatch(given.strip())
    if found is None:
        raise PreconditionFailed('If-Match must be the ETag that you read, such as "3".')
    return int(found.group(1))


def _wants_csv(query: ReportFormat) -> bool:
    if query.format is not None:
        return query.format == "csv"
    return request.accept_mimetypes.best_match(["application/json", "text/csv"]) == "text/csv"


def _lines(session: Session, campaign: Any, found: Sequence[Any]) -> tuple[LoggedDecision, ...]:
    """Read each decision by the definition it was made under."""
    plans = {
        revision: history.definition_at(session, campaign, revision)
        for revision in {one.revision for one in found}
    }
    return tuple(LoggedDecision.of(one, plans[one.revision]) for one in found)


def _replayed(
    session: Session, found: history.Explanation
) -> tuple[ReplayReply, history.Influence | None]:
    try:
        made = replay(session, found.decision.id)
    except Irreproducible as error:
        note = str(error)
        return ReplayReply(possible=False, same=None, arm=None, propensity=None, note=note), None
    influence = history.influence(found, made.live) if made.same else None
    return ReplayReply(
        possible=True,
        same=made.same,
        arm=found.definition.arms[made.recomputed.arm].key,
        propensity=made.recomputed.propensity,
        note=None,
    ), influence
