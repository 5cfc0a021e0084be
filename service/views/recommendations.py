"""The API of traits: products for a customer, newcomers included, and what was found of all."""

import datetime as dt
from typing import Annotated, Any, Literal

from flask import current_app
from pydantic import Field

from service.definition import Document, Short
from service.models import Product
from service.traits import stored
from service.traits.recommend import Recommender, named
from service.traits.vectors import TRAITS, responses
from service.views.contract import Api, Call
from service.views.shapes import utc

api = Api("recommendations", tag="Data")


class RecommendationQuery(Document):
    """For whom, and how many."""

    unit: Short = Field(description="The customer, in plain.")
    count: Annotated[int, Field(ge=1, le=100, description="How many products.")] = 10
    bought: bool = Field(False, description="Also what the customer has bought or seen before.")


class RecommendedProduct(Document):
    """One product, with what the catalogue says of it."""

    product_id: str
    score: float = Field(description="Only its order among the others means something.")
    name: str | None
    category: str | None
    price_minor: int | None
    stock: int | None


class RecommendationReply(Document):
    """Products for a customer, best first."""

    version: int = Field(description="Of the recommender; 0 until there is one.")
    events: int = Field(
        description="Purchases and interactions that it goes by; with 0 it goes by everybody's."
    )
    ranked_by: Literal["taste", "popularity"] = Field(
        description="The customer's taste; or how many customers chose a product, as long as that"
        " foresees better what customers choose next."
    )
    products: tuple[RecommendedProduct, ...]
    tastes: dict[str, float] = Field(
        description="Where the customer stands in the directions that tastes differ in: what"
        " features named taste_1 and so on hold."
    )


@api.route("GET", "/v1/recommendations", scope="decide", reply=RecommendationReply)
def get_recommendations(call: Call, query: RecommendationQuery) -> RecommendationReply:
    """Ask which products a customer may want next.

    Goes by all that the customer has bought and done until now, this very moment included: a new
    customer's third click counts at once. Until the recommender has been fitted for the first time
    (a thousand rows of receipts or interactions), the list is empty. Each refit asks how many of
    the products that customers chose next the recommender would have named; where best sellers
    would have named as many, these are what is told.
    """
    unit = call.runtime.pseudonym(query.unit)
    with call.transaction() as session:
        found = _recommender().for_unit(session, unit, query.count, bought=query.bought)
        known = named(session, found)
    products = tuple(_product(key, score, known.get(key)) for key, score in found.products)
    return RecommendationReply(
        version=found.version,
        events=found.events,
        ranked_by=found.ranked_by,
        products=products,
        tastes=found.tastes,
    )


class TraitsReply(Document):
    """What was found in receipts and interactions, and what may be read of each customer."""

    version: int = Field(description="Counts the computations; 0 until there is one.")
    computed_at: dt.datetime | None
    traits: dict[str, str] = Field(description="The attributes that are computed, with meanings.")
    found: dict[str, Any] = Field(
        description="Personas with sizes and medians, elasticities by department and persona with"
        " 95 % intervals, parameters of the lifetime model, how much more often customers buy at"
        " 10 % off by category (`response`) and why others were left out, how well the"
        " recommender foresees beside best sellers, and what failed and why."
    )


@api.route("GET", "/v1/traits", scope="read", reply=TraitsReply)
def get_traits(call: Call) -> TraitsReply:
    """Read what receipts and interactions say of customers.

    Computed by itself as receipts and interactions come in. Elasticities are what went with lower
    prices, not what these alone would do: receipts do not tell what was advertised.
    """
    with call.transaction() as session:
        found = stored.newest(session)
    return TraitsReply(
        version=0 if found is None else found.version,
        computed_at=None if found is None else utc(found.created_at),
        traits=TRAITS | responses({} if found is None else found.summary),
        found={} if found is None else found.summary,
    )


def _product(key: str, score: float, held: Product | None) -> RecommendedProduct:
    return RecommendedProduct(
        product_id=key,
        score=score,
        name=None if held is None else held.name,
        category=None if held is None else held.category,
        price_minor=None if held is None else held.price_minor,
        stock=None if held is None else held.stock,
    )


def _recommender() -> Recommender:
    found: Recommender = current_app.extensions["barter.recommender"]
    return found
