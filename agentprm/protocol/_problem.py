"""Problems: the answers of all services to what they cannot do."""

from __future__ import annotations

from agentprm.protocol._base import Record

CONTEXT_TOO_LONG = "Conversation too long"
"""Title of the problem that a conversation beyond the model's length is, of policy and PRM."""


class FieldError(Record):
    """A field of a request that is wrong: where it is, and what is wrong with it."""

    loc: list[str | int]
    msg: str


class Problem(Record):
    """RFC 9457 problem details. `type` names the kind, `instance` the request that met it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    instance: str | None = None
    errors: list[FieldError] | None = None
    """The fields that are wrong, where that is the problem; the first ten."""
