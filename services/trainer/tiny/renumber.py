"""Rooms whose places and things have other numbers, and all else is the same.

Whether there is a `drawer 13` depends on the room. A model that was never told to go to one does
not go there, though it reads of it: where a room has more drawers than those of the demonstrations,
they stay closed. Numbers that are drawn anew make it learn what a number is for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from agentprm.config import PRMSettings, SFTSettings
from agentprm.protocol import Action, Episode, State, Step, Turn
from services.trainer.seeds import derive
from services.trainer.tiny.vocabulary import NAMES, NUMBERS

_ROOM = "Looking quickly around you, you see"
"""How ALFWorld begins to tell what is there."""
_LARGEST = len(NUMBERS) - 1
_NAMED = re.compile(rf"\b({'|'.join(sorted(NAMES, key=len, reverse=True))}) ([1-9][0-9]{{0,3}})\b")
_ROW = re.compile(r"a (\w+) \d+(?:, (?:and )?a \1 \d+)+")
"""Several of a kind, which the engine lists from the largest number to the smallest."""
_NUMBER = re.compile(r"\d+")


class Numbers:
    """Other numbers for a room of ALFWorld, one for each place and thing.

    Those of a kind are drawn from as many numbers as there are of it, or up to four more than twice
    as many. That is so for about `share` of all rooms and seeds; else, and in any other
    environment, all stays as it is.
    """

    def __init__(self, seen: Sequence[str], share: float, seed: int) -> None:
        """`seen` are the observations from the first on; they and `seed` say what is drawn."""
        rng = random.Random(derive(seed, *seen))
        self._drawn: dict[str, list[int]] = {}
        self._told: dict[str, str] = {}  # commands are possible again and again
        if rng.random() >= share or _ROOM not in seen[0]:
            return
        most: dict[str, int] = {}
        for kind, number in (found for text in seen for found in _NAMED.findall(text)):
            most[kind] = max(most.get(kind, 0), int(number))
        self._drawn = {kind: _draw(count, rng) for kind, count in sorted(most.items())}

    @classmethod
    def of_episode(cls, episode: Episode, share: float, seed: int, hint: str = "") -> Numbers:
        """Those of an episode, in which a `hint` may tell of more than was seen."""
        seen = [*(turn.observation for turn in episode.turns), episode.final_observation, hint]
        return cls(seen, share, derive(seed, episode.id))

    @classmethod
    def of_state(cls, state: State, share: float, seed: int) -> Numbers:
        """The numbers that are drawn for the room of a state."""
        return cls([*(step.observation for step in state.history), state.observation], share, seed)

    def text(self, text: str) -> str:
        """The command or reason, renumbered."""
        if not self._drawn:
            return text
        told = self._told.get(text)
        if told is None:
            told = _NAMED.sub(lambda m: f"{m[1]} {self._other(m[1], int(m[2]))}", text)
            self._told[text] = told
        return told

    def observation(self, text: str) -> str:
        """The observation, renumbered; what it lists is in the engine's order."""
        return _ROW.sub(_from_the_largest, self.text(text))

    def action(self, action: Action) -> Action:
        """The action, renumbered."""
        update = {"reason": self.text(action.reason), "command": self.text(action.command)}
        return action.model_copy(update=update)

    def state(self, state: State) -> State:
        """The state, renumbered."""
        if not self._drawn:
            return state
        update = {
            "history": tuple(map(self._step, state.history)),
            "observation": self.observation(state.observation),
            "admissible": self._admissible(state.admissible),
        }
        return state.model_copy(update=update)

    def episode(self, episode: Episode) -> Episode:
        """The episode, renumbered, but for what its actions were chosen from."""
        if not self._drawn:
            return episode
        update = {
            "turns": tuple(map(self._turn, episode.turns)),
            "final_observation": self.observation(episode.final_observation),
        }
        return episode.model_copy(update=update)

    def _step(self, step: Step) -> Step:
        update = {
            "observation": self.observation(step.observation),
            "action": self.action(step.action),
        }
        return step.model_copy(update=update)

    def _admissible(self, commands: Sequence[str]) -> tuple[str, ...]:
        """In the engine's order, which else would tell the old numbers."""
        return tuple(sorted(map(self.text, commands)))

    def _turn(self, turn: Turn) -> Turn:
        update = {
            "observation": self.observation(turn.observation),
            "admissible": self._admissible(turn.admissible),
            "action": self.action(turn.action),
            "expert": turn.expert and self.action(turn.expert),
        }
        return turn.model_copy(update=update)

    def _other(self, kind: str, number: int) -> int:
        """The number that stands for `number`; no two have the same, seen or not."""
        numbers = self._drawn.get(kind, [])
        if number <= len(numbers):
            return numbers[number - 1]
        other = number - len(numbers)
        for taken in sorted(numbers):
            other += taken <= other
        return other


def pass_seeds(settings: SFTSettings | PRMSettings, seed: int) -> list[int]:
    """A seed for the numbers of each pass of a fit; of one only, where nothing is renumbered."""
    passes = settings.epochs if settings.renumbered else 1
    return [derive(seed, "numbers", k) for k in range(passes)]


def renumbered(episodes: Sequence[Episode], share: float, seed: int) -> list[Episode]:
    """The episodes, about `share` of them with other numbers."""
    return [Numbers.of_episode(episode, share, seed).episode(episode) for episode in episodes]


def _draw(count: int, rng: random.Random) -> list[int]:
    largest = max(count, min(2 * count + 4, _LARGEST))
    return rng.sample(range(1, rng.randint(count, largest) + 1), count)


def _from_the_largest(row: re.Match[str]) -> str:
    numbers = iter(sorted(map(int, _NUMBER.findall(row[0])), reverse=True))
    return _NUMBER.sub(lambda _: str(next(numbers)), row[0])
