"""Decisions line by line: NDJSON in, NDJSON out, as it goes.

Lines that have come are answered together, at most `GROUP` at a time, so the memory that a stream
takes does not grow with it. Each line is answered by one line, in their order: the reply, or the
problem document of a request that cannot be taken, which does not end the stream.
"""

from collections.abc import Iterator, Sequence
from typing import IO, Final

import orjson
import structlog

from service import bulk, decide, metrics
from service.errors import BarterError, TooLarge, UnknownCampaign
from service.messages import DecisionRequest, PlainRequest
from service.runtime import Runtime
from service.validation import parse

MEDIA: Final = "application/x-ndjson"
GROUP = 1_000
READ_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 16
log = structlog.get_logger()


def answered(runtime: Runtime, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the answers to the lines of a stream, some at a time."""
    for lines in _groups(stream):
        yield b"".join(answer + b"\n" for answer in _answers(runtime, lines))


def _groups(stream: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines that have come; the last need not end."""
    rest = b""
    while True:
        try:
            piece = stream.read(READ_BYTES)
        except (OSError, TimeoutError):
            # Who sends has gone away: what came whole has been answered.
            log.info("stream_broke_off")
            return
        *lines, rest = (rest + piece).split(b"\n")
        if not piece:
            lines, rest = [rest], b""
        lines = [line for line in map(bytes.strip, lines) if line]
        for start in range(0, len(lines), GROUP):
            yield lines[start : start + GROUP]
        if len(rest) > MAX_LINE_BYTES:
            yield [rest]
            return
        if not piece:
            return


def _answers(runtime: Runtime, lines: Sequence[bytes]) -> list[bytes]:
    """Return the answers to some lines, in their order."""
    told: dict[int, bytes] = {}
    asked: dict[int, decide.Asked] = {}
    for place, line in enumerate(lines):
        try:
            asked[place] = _read(runtime, line)
        except BarterError as error:
            told[place] = orjson.dumps(error.problem())
    # Who repeats a request id for something else is told so alone.
    alone = [place for place, one in asked.items() if one.request_id is not None]
    together = [place for place in asked if place not in set(alone)]
    for places in ([together] if together else []) + [[place] for place in alone]:
        try:
            found = bulk.answer(runtime, [asked[place] for place in places])
        except BarterError as error:
            told |= {place: orjson.dumps(error.problem()) for place in places}
            continue
        metrics.count_tally(found.tally())
        told |= dict(zip(places, found.documents(), strict=True))
    return [told[place] for place in range(len(lines))]


def _read(runtime: Runtime, line: bytes) -> decide.Asked:
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge(f"The line is longer than {MAX_LINE_BYTES:,} bytes; the stream ends here.")
    request = PlainRequest.read(line) or parse(DecisionRequest, line)
    if runtime.catalogue.campaign(request.campaign) is None:
        if isinstance(request, PlainRequest):
            parse(DecisionRequest, line)  # what is no key at all is told first
        raise UnknownCampaign(request.campaign)
    return request
