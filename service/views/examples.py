"""Examples of the OpenAPI document: requests that work against the demo's kind of campaign."""

from typing import Any

Example = dict[str, Any]

DECISION: Example = {
    "campaign": "spring-sale",
    "unit": "customer-8231",
    "attributes": {"recency_days": 12, "country": "ES"},
}
DECISIONS: Example = {
    "one": {"summary": "One unit", "value": DECISION},
    "features": {
        "summary": "One unit, with the attributes that features read",
        "value": {
            "campaign": "autumn-sale",
            "unit": "customer-8231",
            "attributes": {"visits": 14, "channel": "app", "member": True},
        },
    },
    "product": {
        "summary": "One unit, about a product whose stock rules may read",
        "value": {"campaign": "spring-sale", "unit": "customer-8231", "product": "tea-250g"},
    },
    "list": {
        "summary": "Several units at once",
        "value": {
            "decisions": [
                DECISION | {"request_id": "cart-771"},
                {"campaign": "spring-sale", "unit": "customer-1007", "exclude_arms": ["thirty"]},
            ]
        },
    },
    "products": {
        "summary": "One unit, with the products on the page, for an offer on recommended ones",
        "value": {
            "campaign": "winter-sale",
            "unit": "customer-8231",
            "products": ["sku-1042", "sku-77", "sku-3310"],
        },
    },
}
OUTCOMES: Example = {
    "one": {
        "summary": "A purchase",
        "value": {
            "event_id": "order-55102",
            "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
            "kind": "purchased",
            "revenue_minor": 4599,
            "occurred_at": "2026-03-02T18:21:05Z",
        },
    },
    "discount": {
        "summary": "A purchase that says what was taken off",
        "value": {
            "event_id": "order-55103",
            "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
            "kind": "purchased",
            "revenue_minor": 6250,
            "discount_minor": 480,
        },
    },
    "list": {
        "summary": "Exposure, then a return",
        "value": {
            "outcomes": [
                {
                    "event_id": "view-9001",
                    "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
                    "kind": "exposed",
                },
                {
                    "event_id": "refund-118",
                    "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
                    "kind": "returned",
                    "revenue_minor": 4599,
                },
            ]
        },
    },
}
LOCAL_DECISIONS: Example = {
    "one": {
        "summary": "A decision of a campaign of three arms",
        "value": {
            "decisions": [
                {
                    "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
                    "revision": 1,
                    "snapshot": 17,
                    "unit": "0f343b0931126a20f133d67c2b018a3b",
                    "segment": 1,
                    "mask": 7,
                    "simplex": [0.2, 0.3, 0.5],
                    "arm": 2,
                    "propensity": 0.5,
                    "reason": "policy",
                    "decided_at": "2026-03-02T18:21:05Z",
                }
            ]
        },
    },
}
CAMPAIGN: Example = {
    "campaign": {
        "summary": "Three offers, one of them by segment",
        "value": {
            "key": "spring-sale",
            "name": "Spring sale",
            "currency": "EUR",
            "zone": "Europe/Madrid",
            "arms": [
                {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
                {"key": "ten", "name": "10 %", "offer": {"kind": "percentage", "percent": 10}},
                {
                    "key": "five-off",
                    "name": "5.00 from 40.00",
                    "offer": {
                        "kind": "spend_threshold",
                        "threshold_minor": 4000,
                        "amount_minor": 500,
                    },
                    "cap": 0.6,
                },
            ],
            "default_arm": "none",
            "segments": [
                {
                    "key": "loyal",
                    "name": "Bought within two weeks",
                    "rules": [{"attribute": "recency_days", "op": "<=", "value": 14}],
                    "arms": {"ten": {"offer": {"kind": "percentage", "percent": 5}}},
                }
            ],
            "objective": "profit",
            "policy": {"name": "thompson_hierarchical", "options": {}},
            "holdout": 0.05,
            "floor": 0.02,
        },
    }
}
FEATURES: list[dict[str, Any]] = [
    {"kind": "number", "key": "visits", "name": "Visits last month", "centre": 10, "scale": 5},
    {"kind": "category", "key": "channel", "name": "Channel", "values": ["app", "web", "shop"]},
    {"kind": "boolean", "key": "member", "name": "Loyalty member", "default": False},
]
CAMPAIGN["features"] = {
    "summary": "Offers chosen by features of the customer",
    "value": {
        "key": "autumn-sale",
        "name": "Autumn sale",
        "currency": "EUR",
        "arms": [
            {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
            {"key": "ten", "name": "10 %", "offer": {"kind": "percentage", "percent": 10}},
        ],
        "default_arm": "none",
        "features": FEATURES,
        "objective": "conversion",
        "policy": {"name": "linear_thompson", "options": {}},
    },
}
CAMPAIGN["products"] = {
    "summary": "Discounts on recommended products, tier by tier",
    "value": {
        "key": "winter-sale",
        "name": "Winter sale",
        "currency": "EUR",
        "arms": [
            {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
            {
                "key": "steep",
                "name": "Few, steep",
                "offer": {
                    "kind": "recommended",
                    "tiers": [{"items": 3, "percent": 20}, {"items": 5, "percent": 10}],
                },
            },
            {
                "key": "flat",
                "name": "Many, flat",
                "offer": {"kind": "recommended", "tiers": [{"items": 12, "percent": 8}]},
            },
        ],
        "default_arm": "none",
    },
}
DUPLICATE: Example = {
    "copy": {"summary": "A new key", "value": {"key": "summer-sale", "name": "Summer sale"}}
}
KEY: Example = {
    "checkout": {
        "summary": "A key for the checkout",
        "value": {"name": "checkout", "scopes": ["decide", "reward"]},
    }
}
USER: Example = {
    "marketer": {
        "summary": "A marketer",
        "value": {
            "email": "ana@shop.example",
            "name": "Ana",
            "role": "marketer",
            "password": "three calm otters",
        },
    }
}
CUSTOMERS: Example = {
    "two": {
        "summary": "Two customers",
        "value": {
            "customers": [
                {"unit": "customer-8231", "attributes": {"recency_days": 12, "spend_band": "b"}},
                {"unit": "customer-1007", "attributes": {"recency_days": 90}},
            ]
        },
    }
}
