"""The first error of a value that pydantic refuses, in words for whoever made the value.

One is enough: a record of another version may have one in each of its turns.
"""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_WORDS = {"extra_forbidden": "there is no such setting", "missing": "it is not given"}


def first_error(error: ValidationError) -> str:
    """The first field that is wrong, and what is wrong with it."""
    message = _first(error)["msg"]
    return ": ".join(filter(None, [first_field(error), message]))


def why(error: Exception) -> str:
    """What is wrong with what could not be read, whatever found it out."""
    return first_error(error) if isinstance(error, ValidationError) else str(error)


def all_errors(error: ValidationError) -> str:
    """Every field that is wrong, a line each."""
    return "\n".join(
        ": ".join(
            filter(None, [".".join(map(str, each["loc"])), _WORDS.get(each["type"], each["msg"])])
        )
        for each in _details(error)
    )


def first_field(error: ValidationError) -> str:
    """The dotted name of the first field that is wrong; empty where it is the whole value."""
    return ".".join(map(str, _first(error)["loc"]))


def is_no_json(error: ValidationError) -> bool:
    """Whether it could not be read at all."""
    return _first(error)["type"] == "json_invalid"


def _first(error: ValidationError) -> ErrorDetails:
    return _details(error)[0]


def _details(error: ValidationError) -> list[ErrorDetails]:
    # Without their input, which may be large.
    return error.errors(include_url=False, include_context=False, include_input=False)
