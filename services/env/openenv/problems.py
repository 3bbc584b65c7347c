"""What is wrong with a message, in words for its sender."""

from __future__ import annotations

from pydantic import ValidationError


def is_no_json(error: ValidationError) -> bool:
    """Whether it could not be read at all."""
    return error.errors(include_url=False)[0]["type"] == "json_invalid"


def where(error: ValidationError) -> str:
    """The first field that is wrong, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
