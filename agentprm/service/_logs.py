"""Structured logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import orjson
import structlog


def configure_logging(service: str, *, requests: bool = True) -> None:
    """Structured logs on stderr, one JSON object a line, each with the service's name.

    Without `requests` those that were answered get no line, only those that were refused or failed.
    A line that cannot be written, as on a full disk, is lost.
    """
    structlog.configure(
        processors=[
            *([] if requests else [_drop_answered]),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda v, **_: orjson.dumps(v).decode()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Lines(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)


class _Lines(structlog.PrintLogger):
    """An error of the disk ends no thread that has something to say, such as a heartbeat."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _drop_answered(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if line["event"] == "request" and line["status"] < 400:
        raise structlog.DropEvent
    return line
