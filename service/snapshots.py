"""A campaign ready to decide: its definition, its policy and the newest snapshot.

`LiveCampaign` is what serving processes hold and what replay rebuilds from the log; both get the
simplex from the same function, so a logged decision can be recomputed bit for bit.
"""

import bisect
import copy
import datetime as dt
import functools
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from bandits import artefact, sampling, simplex
from bandits.types import Contexts
from service import contexts, copying
from service.definition import AUTO, CampaignDefinition
from service.eligibility import State, holdout, mask_bits, masked, state_at

MAX_SIMPLEXES = 10_000
TOGETHER = 1e-8
"""By how much a probability that was computed with many others may differ from its own."""


def whole(state: bytes, fitted: bytes | None) -> bytes:
    """Return a snapshot's state with what it left out, because its retraining has it.

    Raises:
        ValueError: it is damaged, or it left out what another retraining has.
    """
    return state if fitted is None else artefact.completed(state, fitted)


@dataclass(slots=True)
class Choice:
    """A drawn arm: its place, the probability it was drawn with, and the whole simplex."""

    arm: int
    propensity: float
    simplex: tuple[float, ...]
    _row: bytes = field(default=b"", init=False, compare=False, repr=False)
    _text: str = field(default="", init=False, compare=False, repr=False)
    _number: str = field(default="", init=False, compare=False, repr=False)

    @property
    def row(self) -> bytes:
        """Its part of a row of the log: written once, for all decisions that share it."""
        if not self._row:
            self._row = copying.chosen(self.simplex, self.arm, self.propensity)
        return self._row

    @property
    def text(self) -> str:
        """The same as members of a JSON object."""
        if not self._text:
            named = {"simplex": self.simplex, "arm": self.arm, "propensity": self.propensity}
            self._text = orjson.dumps(named)[1:-1].decode()
        return self._text

    @property
    def number(self) -> str:
        """The propensity as JSON."""
        if not self._number:
            self._number = orjson.dumps(self.propensity).decode()
        return self._number


class _Drawn:
    """Choices from one simplex, which decisions without a context share."""

    def __init__(self, chances: tuple[float, ...]) -> None:
        self.bounds = sampling.bounds(chances)
        self.choices = [Choice(arm, chance, chances) for arm, chance in enumerate(chances)]


def served(definition: CampaignDefinition, stored: bytes | None) -> CampaignDefinition:
    """Return the definition with the policy named that a snapshot is served by.

    That is the definition's own, with two exceptions: ``auto`` is whatever policy the snapshot is
    of, and a policy that cannot read the snapshot, because its predecessor was chosen by ``auto``
    and keeps other sums, waits until its own state has been computed (`service.auto`).

    Raises:
        ValueError: the snapshot is damaged.
    """
    if not stored:
        return definition.served_by(definition.choices[0]) if _auto(definition) else definition
    name = artefact.describe(stored)["policy"]
    if _auto(definition):
        return definition.served_by(name if name in definition.choices else definition.choices[0])
    if name in (None, definition.policy.name) or _reads(definition, stored):
        return definition
    return definition.served_by(name)


def _shared(definition: CampaignDefinition) -> str | None:
    """Return what its decisions share with those of other hosts, if anything, in words."""
    if definition.budget_minor is not None:
        return "its budget"
    if definition.sticky_seconds:
        return "the arms that units keep"
    return "what is recommended and what has sold out" if definition.recommends else None


def _auto(definition: CampaignDefinition) -> bool:
    return definition.policy.name == AUTO


def _reads(definition: CampaignDefinition, stored: bytes) -> bool:
    try:
        artefact.from_bytes(stored, like=definition.build_policy().init())
    except ValueError:
        return False
    return True


class LiveCampaign:
    """One campaign at one revision and one snapshot."""

    def __init__(
        self,
        *,
        id: int,
        revision: int,
        state: State,
        killed: bool,
        seed: bytes,
        definition: CampaignDefinition,
        version: int = 0,
        stored: bytes | None = None,
    ) -> None:
        self.id, self.revision, self.state, self.killed = id, revision, state, killed
        self.seed, self.definition, self.version = seed, definition, version
        self.served = served(definition, stored)
        self.policy = self.served.build_policy()
        start = self.policy.init()
        self.learnt = artefact.from_bytes(stored, like=start) if stored else start
        # Water-filling costs more than all else of a guard, so only where a cap can bind.
        caps = [1.0 if arm.cap is None else arm.cap for arm in definition.arms]
        self._caps = np.array(caps) if min(caps) < 1 else None
        self.contextual = self.served.contextual
        self._simplexes: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._drawn: dict[tuple[int, int], _Drawn] = {}
        self._eligible: dict[int, tuple[NDArray[np.bool_], Callable[[Any], Any]]] = {}
        self._hashed = sampling.keyed(seed)
        self.held_out = holdout(definition, seed)
        self.encode = contexts.Encoder(definition)
        self.default = definition.default_index
        self.prefix = id.to_bytes(4, "big")  # of the ids of all its decisions
        self.prefix_text = f"{self.prefix.hex()}-"
        self._certain = [
            Choice(arm, 1.0, tuple(float(place == arm) for place in self.range_of_arms))
            for arm in self.range_of_arms
        ]
        self.fallback = self._certain[self.default]
        self.elsewhere = len(definition.segments)  # of units that are in no segment
        self.recommends = definition.recommends
        self.offer_lasts = dt.timedelta(seconds=definition.offer_seconds)
        self.offer_micros = definition.offer_seconds * 1_000_000
        self._offers: dict[tuple[int, int], str] = {}
        self._documents: dict[tuple[int, int], dict[str, Any]] = {}
        self.key, self.segment_keys = definition.key, definition.segment_keys
        self.arm_keys = [arm.key for arm in definition.arms]
        self.timed = not definition.reads.isdisjoint((*contexts.CLOCK, *contexts.HOLIDAYS))
        self._reads = operator.itemgetter(*definition.reads) if definition.reads else None
        self._endless = definition.ends_at is None
        self.shared = _shared(definition)
        # Which arms are eligible hangs on the segment alone, unless a request excludes some.
        self._conditional = definition.budget_minor is not None or any(
            arm.only_if for arm in definition.arms
        )
        self._masked: dict[int, tuple[dict[str, str], int]] = {}

    @functools.cached_property
    def belief(self) -> Any:
        """What the policy makes of what it has learnt; it may take 20 ms."""
        return self.policy.believe(self.learnt)

    @classmethod
    def load(
        cls,
        row: dict[str, Any],
        state: bytes | None,
        version: int,
        *,
        definition: CampaignDefinition | None = None,
        usual: bytes = b"",
    ) -> "LiveCampaign":
        """Return a campaign from its catalogue row (see `service.carrier`) and its snapshot.

        ``definition`` is that of the row, where it has been read before; ``usual`` is what
        `usual` gave where the snapshot was made, if the campaign's revision was the same there.

        Raises:
            ValueError: the definition or the snapshot cannot be read or do not fit each other.
        """
        made = cls(
            id=row["id"],
            revision=row["revision"],
            state=row["state"],
            killed=row["killed"],
            seed=bytes.fromhex(row["seed"]),
            definition=definition or CampaignDefinition.model_validate(row["definition"]),
            version=version,
            stored=state,
        )
        if not made._take(usual):
            made._rehearse()
        return made

    def _rehearse(self) -> None:
        """Compute what no decision is to wait for: the belief, and machine code if it has none."""
        made = [place for place, mask in enumerate(self._usual_masks()) if mask]
        for place in made[:1]:
            self._computed(place, self._usual_masks()[place], (0,) * self.definition.feature_width)
        self.belief  # noqa: B018

    def at(self, learnt: Any) -> "LiveCampaign":
        """Return this campaign with another state of its policy."""
        other = copy.copy(self)
        other.learnt = learnt
        other._simplexes, other._drawn = {}, {}
        other.__dict__.pop("belief", None)
        return other

    def usual(self) -> bytes:
        """Return what most of its decisions are drawn from, as float64 (S, A); b"" by contexts.

        That is the simplex of every segment with all arms that it does not always exclude. Who
        takes it from who made the snapshot need not compute a belief, with every snapshot in every
        serving process, unless a request excludes more arms.
        """
        if self.contextual:
            return b""
        masks = self._usual_masks()
        nothing = np.zeros(len(self.definition.arms))
        rows = [self.simplex(place, mask) if mask else nothing for place, mask in enumerate(masks)]
        return np.array(rows).tobytes()

    def _take(self, usual: bytes) -> bool:
        """Take what `usual` gave; tell whether there was anything to take."""
        masks, arms = self._usual_masks(), len(self.definition.arms)
        if self.contextual or len(usual) != 8 * arms * len(masks):
            return False
        rows = np.frombuffer(usual).reshape(len(masks), arms)
        self._simplexes = {(place, mask): rows[place] for place, mask in enumerate(masks) if mask}
        return True

    def _usual_masks(self) -> list[int]:
        return [
            self.masked(place, (), {}, 0)[1] for place in range(len(self.definition.segment_keys))
        ]

    def moved(self, state: State, *, killed: bool) -> "LiveCampaign":
        """Return this campaign in another state."""
        other = copy.copy(self)
        other.state, other.killed = state, killed
        return other

    def told_all(self, attributes: Mapping[str, object]) -> bool:
        """Tell whether everything is among these that its rules and features read."""
        try:
            if self._reads is not None:
                self._reads(attributes)
        except KeyError:
            return False
        return True

    def state_at(self, now: dt.datetime) -> str:
        """Return the state now, or ``killed``."""
        if self.killed:
            return "killed"
        if self._endless and self.state == "running":
            return "running"
        return state_at(self.state, self.definition.starts_at, self.definition.ends_at, now)

    def simplex(
        self, segment: int, mask: int, context: ArrayLike = contexts.NOTHING
    ) -> NDArray[np.float64]:
        """Return the guarded probabilities (A,) of a segment under a mask of eligible arms.

        ``context`` holds the D encoded features; policies that are not contextual ignore it.

        Raises:
            ValueError: no arm is eligible, or the context is not of this campaign's width.
        """
        if self.contextual:
            return self._computed(segment, mask, context)
        key = (segment, mask)
        known = self._simplexes.get(key)
        if known is None:
            known = self._computed(segment, mask, (0,) * self.definition.feature_width)
            if len(self._simplexes) >= MAX_SIMPLEXES:
                # Requests may exclude any arms: there are more masks than memory.
                self._simplexes.clear()
            self._simplexes[key] = known
        return known

    def _computed(self, segment: int, mask: int, context: ArrayLike) -> NDArray[np.float64]:
        eligible, guarded = self._guarded(mask)
        features = np.asarray(context, dtype=np.int64)
        if self.policy.single is not None:
            raw = self.policy.single(self.belief, segment, features, eligible[0])[None]
        else:
            row = Contexts(np.array([segment], dtype=np.int32), features[None])
            raw = np.asarray(self.policy.probabilities(self.belief, row, eligible))
        chances: NDArray[np.float64] = guarded(raw)[0]
        return chances

    def simplexes(
        self, segments: NDArray[np.int64], masks: NDArray[np.int64], contexts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the guarded probabilities (B, A) of many contexts (B, D) at once.

        They are computed together, in a fraction of the time, and differ from `simplex` of each by
        what sums in another order, and another rule of quadrature, differ: by less than `TOGETHER`.

        Raises:
            ValueError: as for `simplex`.
        """
        rows = Contexts(segment=segments.astype(np.int32), features=contexts)
        if self._caps is None and (masks == masks[0]).all():
            one, guarded = self._guarded(int(masks[0]))
            eligible = np.repeat(one, len(masks), axis=0)
            same: NDArray[np.float64] = guarded(
                np.asarray(self.policy.probabilities(self.belief, rows, eligible))
            )
            return same
        distinct, place = np.unique(masks, return_inverse=True)
        each = [self._guarded(int(mask))[0][0] for mask in distinct]
        eligible = np.array(each, dtype=bool)[place]
        raw = np.asarray(self.policy.probabilities(self.belief, rows, eligible))
        floor, caps = self.definition.floor, self._caps
        chances: NDArray[np.float64] = simplex.guard(raw, eligible, floor=floor, cap=caps)
        return chances

    def _guarded(self, mask: int) -> tuple[NDArray[np.bool_], Callable[[Any], Any]]:
        """Return a mask as an array (1, A), and what guards a simplex under it."""
        known = self._eligible.get(mask)
        if known is None:
            eligible = np.array([[mask >> arm & 1 for arm in self.range_of_arms]], dtype=bool)
            floor, caps = self.definition.floor, self._caps
            if caps is None:
                guarded = simplex.guarding(eligible, floor=floor)
            else:
                guarded = functools.partial(simplex.guard, mask=eligible, floor=floor, cap=caps)
            if len(self._eligible) >= MAX_SIMPLEXES:
                self._eligible.clear()
            known = self._eligible[mask] = eligible, guarded
        return known

    def draw(
        self, segment: int, mask: int, key: bytes, context: ArrayLike = contexts.NOTHING
    ) -> Choice:
        """Return the arm that the key draws: the same inputs always draw the same arm."""
        if self.contextual:
            chances = tuple(self.simplex(segment, mask, context).tolist())
            arm = sampling.draw(chances, sampling.number(self._hashed(key)))
            return Choice(arm, chances[arm], chances)
        drawn = self._drawn.get((segment, mask))
        if drawn is None:
            if len(self._drawn) >= MAX_SIMPLEXES:
                self._drawn.clear()
            drawn = _Drawn(tuple(self.simplex(segment, mask, context).tolist()))
            self._drawn[segment, mask] = drawn
        return drawn.choices[bisect.bisect_right(drawn.bounds, self._hashed(key))]

    def draws(self, asked: Sequence[tuple[int, int, bytes, contexts.Context]]) -> list[Choice]:
        """Return what `draw` does for each, from simplexes that are computed together.

        See `simplexes`; one alone is what `draw` gives in every bit, as are all without contexts.
        """
        if len(asked) == 1 or not self.contextual:
            return [self.draw(*one) for one in asked]
        segments, masks, keys, found = zip(*asked, strict=True)
        rows = self.simplexes(np.array(segments), np.array(masks), np.array(found)).tolist()
        drawn = []
        for key, chances in zip(keys, rows, strict=True):
            arm = sampling.draw(chances, sampling.number(self._hashed(key)))
            drawn.append(Choice(arm, chances[arm], tuple(chances)))
        return drawn

    def certain(self, arm: int) -> Choice:
        """Return an arm that was not drawn: it had probability one."""
        return self._certain[arm]

    def masked(
        self,
        segment: int,
        excluded: Collection[str],
        attributes: Mapping[str, object],
        committed: int,
    ) -> tuple[dict[str, str], int]:
        """Return the arms that must not be served, with reasons, and the mask of all others.

        See `service.eligibility.masked`.
        """
        if excluded or self._conditional:
            reasons = masked(self.definition, segment, excluded, attributes, committed)
            return reasons, mask_bits(self.definition, reasons)
        known = self._masked.get(segment)
        if known is None:
            reasons = masked(self.definition, segment, (), {})
            known = self._masked[segment] = reasons, mask_bits(self.definition, reasons)
        return known

    def served_json(self, segment: int, arm: int) -> str:
        """Return an arm and its offer in a segment, as two members of a JSON object."""
        known = self._offers.get((segment, arm))
        if known is None:
            offer = self.definition.offer(segment, arm).model_dump_json()
            known = f'"arm":"{self.definition.arms[arm].key}","offer":{offer}'
            self._offers[segment, arm] = known
        return known

    def offer_document(self, segment: int, arm: int) -> dict[str, Any]:
        """Return the offer of an arm in a segment as a document of the caller's own."""
        known = self._documents.get((segment, arm))
        if known is None:
            known = self.definition.offer(segment, arm).model_dump(mode="json")
            self._documents[segment, arm] = known
        # Only tiers hold more than plain values.
        return copy.deepcopy(known) if "tiers" in known else known.copy()

    @property
    def range_of_arms(self) -> range:
        """The places of all arms."""
        return range(len(self.definition.arms))
