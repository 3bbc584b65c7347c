"""The first error of a value that pydantic refuses, in words for whoever made the value.

One is enough: a record of another version may have one in each of its turns.
"""

from __future__ import annotations

from pydantic import ValidationError


def first_error(error: ValidationError) -> str:
    """The first field that is wrong, and what is wrong with it."""
    message = error.errors(include_url=False)[0]["msg"]
    return ": ".join(filter(None, [first_field(error), message]))


def first_field(error: ValidationError) -> str:
    """The dotted name of the first field that is wrong; empty where it is the whole value."""
    return ".".join(map(str, error.errors(include_url=False)[0]["loc"]))


def is_no_json(error: ValidationError) -> bool:
    """Whether it could not be read at all."""
    return error.errors(include_url=False)[0]["type"] == "json_invalid"
