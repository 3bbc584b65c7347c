"""What was learned from the real train split: frequencies, in `learned.json`."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict

NOWHERE = "nowhere"
"""Stands for a receptacle, for things such as windows and chairs that lie in none."""


class Learned(BaseModel):
    """Frequencies by kind of room (`Kitchen`, ...); types as in the game files (`SinkBasin`)."""

    model_config = ConfigDict(frozen=True)

    source: str
    """The data, and the command that made the file."""
    games: int
    counts: dict[str, dict[str, list[int]]]
    """By object type: how many games have 0, 1, 2, ... of them, where the plan lists the type."""
    rates: dict[str, dict[str, dict[str, float]]]
    """By object and receptacle type: objects per receptacle of the type, in games that have such
    objects; for `nowhere`, objects per game."""
    unnamed: dict[str, dict[str, list[list[int]]]]
    """By receptacle type that the plan lists: how many games have 0, 1, 2, ... of them without
    coordinates in the plan; first where it has coordinates of none, then where of some."""
    goals: dict[str, dict[str, dict[str, int]]]
    """By task type and kind of room: games by `Object Receptacle`, or `Object Lamp`."""
    pickupable: frozenset[str]
    """Object types that can be taken."""


@lru_cache(maxsize=1)
def learned() -> Learned:
    """The shipped table."""
    return Learned.model_validate_json(files(__package__).joinpath("learned.json").read_bytes())
