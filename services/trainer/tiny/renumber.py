"""Demonstrations in which places and things have other numbers, and all else is the same.

Which `drawer 13` there is hangs on the room. A model that was never told to go to one does not go
there, though it reads of it: where a room has more drawers than those of the demonstrations, they
stay closed. Numbers that are drawn anew make it learn what a number is for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from agentprm.protocol import Action, Episode
from services.trainer.seeds import derive
from services.trainer.tiny.vocabulary import NAMES, NUMBERS

_LARGEST = len(NUMBERS) - 1
_NAMED = re.compile(rf"\b({'|'.join(sorted(NAMES, key=len, reverse=True))}) (\d+)\b")
_ROW = re.compile(r"a (\w+) \d+(?:, (?:and )?a \1 \d+)+")
"""Several of a kind, which the engine lists from the largest number to the smallest."""
_NUMBER = re.compile(r"\d+")


def renumbered(episodes: Sequence[Episode], share: float, seed: int) -> list[Episode]:
    """The episodes, about `share` of them with other numbers."""
    draws = [random.Random(derive(seed, episode.id)) for episode in episodes]
    return [
        renumber(episode, rng) if rng.random() < share else episode
        for episode, rng in zip(episodes, draws, strict=True)
    ]


def renumber(episode: Episode, rng: random.Random) -> Episode:
    """The episode with numbers that `rng` draws, one for each place and thing.

    Those of a kind are drawn from as many numbers as there are of it, or up to four more than twice
    as many.
    """
    seen = [*(turn.observation for turn in episode.turns), episode.final_observation]
    most: dict[str, int] = {}
    for kind, number in (found for text in seen for found in _NAMED.findall(text)):
        most[kind] = max(most.get(kind, 0), int(number))
    drawn = {kind: _draw(count, rng) for kind, count in sorted(most.items())}

    def named(text: str) -> str:
        return _NAMED.sub(lambda m: f"{m[1]} {_other(drawn, m[1], int(m[2]))}", text)

    def observed(text: str) -> str:
        return _ROW.sub(_from_the_largest, named(text))

    turns = tuple(
        turn.model_copy(
            update={
                "observation": observed(turn.observation),
                "admissible": tuple(map(named, turn.admissible)),
                "action": Action(
                    reason=named(turn.action.reason), command=named(turn.action.command)
                ),
            }
        )
        for turn in episode.turns
    )
    final = observed(episode.final_observation)
    return episode.model_copy(update={"turns": turns, "final_observation": final})


def _draw(count: int, rng: random.Random) -> list[int]:
    largest = max(count, min(2 * count + 4, _LARGEST))
    return rng.sample(range(1, rng.randint(count, largest) + 1), count)


def _other(drawn: dict[str, list[int]], kind: str, number: int) -> int:
    """The number that stands for `number`; one of which no observation tells stays."""
    numbers = drawn.get(kind, [])
    return numbers[number - 1] if 1 <= number <= len(numbers) else number


def _from_the_largest(row: re.Match[str]) -> str:
    numbers = iter(sorted(map(int, _NUMBER.findall(row[0])), reverse=True))
    return _NUMBER.sub(lambda _: str(next(numbers)), row[0])
