"""Logs: one JSON object per line on standard error, with the id of the request it belongs to."""

import logging
import sys

import structlog


def configure() -> None:
    """Make every log line of this process a JSON object; calling it again changes nothing."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Never the locals of a frame: they hold keys, passwords and customers.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_standard_error,
        cache_logger_on_first_use=False,
    )


def _standard_error(*_: object) -> structlog.PrintLogger:
    """Look the stream up for every line: whoever replaces it gets the lines from then on."""
    return structlog.PrintLogger(sys.stderr)
