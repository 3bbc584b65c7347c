"""How good a world model is: what it got right of each outcome, slot by slot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from agentprm.world import Outcome

NOTHING = "Nothing happens."
"""What ALFWorld answers to a command that cannot be carried out."""
_NAME = re.compile(r"[a-z]+ [0-9]+")
_PLACE = re.compile(
    r"\b(?:arrive at|facing the|open the|close the|from the|to the|in/on the|using the|with the"
    r"|On the|The) ([a-z]+ [0-9]+)"
)


class Accuracy(BaseModel):
    """Rates over transitions, each in [0, 1]; None where there was nothing to count.

    An outcome that the model did not give, or that was cut off, is wrong in everything.
    """

    transitions: int
    wins: int
    """Transitions that won the game."""
    answered: float | None
    """Outcomes that the model gave."""
    observation: float | None
    """The observation to the letter."""
    success: float | None
    """Whether anything happens."""
    place: float | None
    """The receptacle that the observation is about, where it names one."""
    objects: float | None
    """All objects that the observation names and no others, where it names any."""
    admissible: float | None
    """All commands possible then and no others, where the game goes on."""
    added_found: float | None
    """Of the commands that become possible, those that were foreseen."""
    added_true: float | None
    """Of the commands foreseen to become possible, those that do."""
    won: float | None
    """Whether the command wins the game."""
    wins_found: float | None
    """Of the wins, those that were foreseen."""
    wins_true: float | None
    """Of the wins that were foreseen, those that came."""


@dataclass(frozen=True)
class Slots:
    """What an observation says: whether something happened, where, and which objects it names."""

    success: bool
    place: str | None
    objects: frozenset[str]


def slots(observation: str) -> Slots:
    """The slots of one of ALFWorld's observations."""
    found = _PLACE.search(observation)
    place = found[1] if found else None
    names = frozenset(_NAME.findall(observation)) - {place}
    return Slots(observation != NOTHING, place, frozenset(name for name in names if name))


def accuracy(
    before: Sequence[Sequence[str]],
    true: Sequence[Outcome],
    predicted: Sequence[Outcome | None],
) -> Accuracy:
    """Outcomes against predictions; `before[i]` were the commands possible before the i-th."""
    pairs = list(zip(true, predicted, strict=True))
    seen = [(slots(t.observation), None if p is None else slots(p.observation)) for t, p in pairs]
    going_on = [(set(b), t, p) for b, (t, p) in zip(before, pairs, strict=True) if not t.won]
    added = [(set(t.admissible) - b, set(p.admissible) - b if p else set()) for b, t, p in going_on]
    common = sum(len(t & p) for t, p in added)
    wins = sum(t.won for t in true)
    foreseen = sum(p is not None and p.won for p in predicted)
    both = sum(t.won and p is not None and p.won for t, p in pairs)
    return Accuracy(
        transitions=len(pairs),
        wins=wins,
        answered=_rate([p is not None for p in predicted]),
        observation=_rate([p is not None and p.observation == t.observation for t, p in pairs]),
        success=_rate([p is not None and p.success == t.success for t, p in seen]),
        place=_rate([p is not None and p.place == t.place for t, p in seen if t.place]),
        objects=_rate([p is not None and p.objects == t.objects for t, p in seen if t.objects]),
        admissible=_rate([p is not None and p.admissible == t.admissible for _, t, p in going_on]),
        added_found=_part(common, sum(len(t) for t, _ in added)),
        added_true=_part(common, sum(len(p) for _, p in added)),
        won=_rate([p is not None and p.won == t.won for t, p in pairs]),
        wins_found=_part(both, wins),
        wins_true=_part(both, foreseen),
    )


def _rate(right: Sequence[bool]) -> float | None:
    return _part(sum(right), len(right))


def _part(count: int, whole: int) -> float | None:
    return count / whole if whole else None
