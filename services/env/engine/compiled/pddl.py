"""The words of PDDL text."""

from __future__ import annotations

import re

_COMMENT = re.compile(r";[^\n]*")
_TOKEN = re.compile(r"[()]|[^\s()]+")


def without_comments(text: str) -> str:
    """The text without what stands behind a semicolon in a line."""
    return _COMMENT.sub("", text)


def tokens(text: str) -> list[str]:
    """Parentheses, and what lies between them and white space."""
    return _TOKEN.findall(text)
