"""Request ids: one name for all that a request, or a job, causes in every service.

The id is a field of the log's context, so it is in every line that is logged meanwhile; clients
send it on as `X-Request-ID`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

HEADER = "X-Request-ID"

_FIELD = "request_id"
_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


def current() -> str | None:
    """The id of what is being done."""
    found: str | None = structlog.contextvars.get_contextvars().get(_FIELD)
    return found


def adopt(given: str) -> str:
    """Go on under the id `given`, or a new one where it is no id; which it is."""
    request_id = _valid(given)
    structlog.contextvars.bind_contextvars(**{_FIELD: request_id})
    return request_id


@contextmanager
def named(given: str) -> Iterator[str]:
    """Go on under the id `given`, or a new one, until the block ends; which it is."""
    request_id = _valid(given)
    with structlog.contextvars.bound_contextvars(**{_FIELD: request_id}):
        yield request_id


def _valid(given: str) -> str:
    """`given` where it is an id, else a new one."""
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
