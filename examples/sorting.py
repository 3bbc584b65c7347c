"""An environment of one's own: sort five digits by swapping two of them in a turn.

    agentprm train --preset examples/sorting.toml --games examples.sorting:Sorting

trains a model from scratch in it, in some minutes on two cores. See docs/own-environment.md.
"""

import random
from collections.abc import Iterable
from itertools import combinations

from agentprm.environment import Action, Frame, Game, Split

COMMANDS = tuple(f"swap {a} {b}" for a, b in combinations(range(1, 6), 2))


class Sorting:
    """Sort five digits, two of which trade places in a turn."""

    @staticmethod
    def games() -> Iterable[Game]:
        """2,000 to learn from and 100 to report on; the name of one is the seed of its digits."""
        for split, count in ((Split.TRAIN, 2000), (Split.VALID_SEEN, 100)):
            for k in range(count):
                yield Game(id=f"{split}/{k}", split=split, task_type="sort", task="sort the digits")

    def reset(self, game: str) -> Frame:
        """Five of the digits from 1 to 9, out of order."""
        draw = random.Random(game)
        self.digits = sorted(draw.sample(range(1, 10), 5))
        while self.digits == sorted(self.digits):
            draw.shuffle(self.digits)
        return self._frame()

    def step(self, command: str) -> Frame:
        """Carry out the swap; another command changes nothing."""
        if command in COMMANDS:
            a, b = (int(place) - 1 for place in command.split()[1:])
            self.digits[a], self.digits[b] = self.digits[b], self.digits[a]
        return self._frame()

    def _frame(self) -> Frame:
        shown, goal = " ".join(map(str, self.digits)), sorted(self.digits)
        if self.digits == goal:
            return Frame(shown, COMMANDS, reward=1.0, done=True, won=True)
        place = next(k for k in range(5) if self.digits[k] != goal[k])
        advice = Action(
            reason=f"{goal[place]} to place {place + 1}",
            command=f"swap {place + 1} {self.digits.index(goal[place]) + 1}",
        )
        return Frame(shown, COMMANDS, advice=advice)
