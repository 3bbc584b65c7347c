"""What a goal sentence asks for. ALFWorld fills twelve templates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["heat", "cool", "clean"]

_TREATMENTS: dict[str, Treatment] = {
    "heat": "heat",
    "hot": "heat",
    "cool": "cool",
    "clean": "clean",
}
_TEMPLATES = [
    re.compile(pattern + r"\.?")
    for pattern in (
        r"(?:look at|examine the) (?P<thing>\w+) (?:under|with) the (?P<lamp>\w+)",
        r"(?P<how>heat|cool|clean) some (?P<thing>\w+) and put it in (?P<place>\w+)",
        r"put a (?P<how>hot|cool|clean) (?P<thing>\w+) in (?P<place>\w+)",
        r"(?:put|find) (?P<two>two) (?P<thing>\w+) (?:and put them )?in (?P<place>\w+)",
        r"put (?:a|some) (?P<thing>\w+) (?:in|on) (?P<place>\w+)",
    )
]


@dataclass(frozen=True)
class Goal:
    """Bring `count` things, treated if so asked, to a place; or look at one under a lamp."""

    thing: str
    place: str | None = None
    lamp: str | None = None
    treatment: Treatment | None = None
    count: int = 1


def parse_goal(task: str) -> Goal:
    """The goal of a templated sentence.

    Raises:
        ValueError: the sentence comes from no template, such as a human annotation.
    """
    for template in _TEMPLATES:
        match = template.fullmatch(task.strip())
        if match:
            found = match.groupdict()
            return Goal(
                thing=found["thing"],
                place=found.get("place"),
                lamp=found.get("lamp"),
                treatment=_TREATMENTS[found["how"]] if found.get("how") else None,
                count=2 if found.get("two") else 1,
            )
    raise ValueError(f"no template makes the goal {task!r}")
