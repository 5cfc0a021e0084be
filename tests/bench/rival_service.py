"""A decision service as a competent team would write it around Vowpal Wabbit; runs by itself.

Flask, a pool of psycopg connections, one INSERT and commit for every decision, so that what is
answered is in the database. Vowpal Wabbit's workspace is not for several threads at once, so a
process has one and a lock. The model is `cb_explore_adf` with squarecb, which gives probabilities.
"""

import hashlib
import hmac
import os
import random
import threading
import uuid
from typing import Any

import flask
import msgspec
from flask import Flask
from psycopg.types.json import Json

ARMS = ("none", "ten", "twenty")
TABLE = """
CREATE TABLE IF NOT EXISTS decisions (
    id uuid PRIMARY KEY, campaign text NOT NULL, unit text NOT NULL, context json NOT NULL,
    arm text NOT NULL, propensity float8 NOT NULL, probabilities float8[] NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT now())
"""
INSERT = """
INSERT INTO decisions (id, campaign, unit, context, arm, propensity, probabilities)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


class Request(msgspec.Struct):
    """What an app server asks."""

    campaign: str
    unit: str
    attributes: dict[str, float | str] = {}


def create() -> Flask:
    """Return the application; make it in the worker."""
    import vowpalwabbit  # type: ignore[import-not-found]
    from psycopg_pool import ConnectionPool  # type: ignore[import-not-found]

    app = Flask("rival")
    threads = int(os.environ["RIVAL_THREADS"])
    pool: Any = ConnectionPool(os.environ["RIVAL_DATABASE"], min_size=threads, max_size=threads)
    model = vowpalwabbit.Workspace("--cb_explore_adf --squarecb -q sa --quiet")
    lock, decode = threading.Lock(), msgspec.json.Decoder(Request).decode
    secret = hashlib.sha256(os.environ["RIVAL_KEY"].encode()).digest()
    actions = "\n".join(f"|a {arm}" for arm in ARMS)
    with pool.connection() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(1)")
        connection.execute(TABLE)

    @app.post("/v1/decisions")
    def decide() -> flask.Response:
        given = flask.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), secret):
            flask.abort(401)
        asked = decode(flask.request.get_data(cache=False))
        features = " ".join(
            f"{name}={value}" if isinstance(value, str) else f"{name}:{value}"
            for name, value in asked.attributes.items()
        )
        with lock:
            chances = model.predict(f"shared |s {features}\n{actions}")
        (place,) = random.choices(range(len(ARMS)), chances)
        id, chance = uuid.uuid4(), chances[place]
        row = (id, asked.campaign, asked.unit, Json(asked.attributes), ARMS[place], chance, chances)
        with pool.connection() as connection:
            connection.execute(INSERT, row)
        reply = {"decision_id": id, "arm": ARMS[place], "propensity": chance}
        return flask.Response(msgspec.json.encode(reply), mimetype="application/json")

    return app
