"""An environment of one's own: put five digits in order, a digit to its place in a turn.

    agentprm train --preset examples/sorting.toml --games examples.sorting:Sorting

trains a model from scratch in it, in some minutes on two cores. See docs/own-environment.md.
"""

import random
from collections.abc import Iterable

from agentprm.environment import Action, Frame, Game, Split


class Sorting:
    """Sort five digits: one that is put in a place trades with the one that is there."""

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
        """Put the digit in its place; another command changes nothing."""
        if command in self._commands():
            digit, place = int(command[4]), int(command[-1]) - 1
            other = self.digits.index(digit)
            self.digits[place], self.digits[other] = digit, self.digits[place]
        return self._frame()

    def _commands(self) -> tuple[str, ...]:
        return tuple(f"put {digit} in place {k}" for digit in self.digits for k in range(1, 6))

    def _frame(self) -> Frame:
        seen, goal = " ".join(map(str, self.digits)), sorted(self.digits)
        if self.digits == goal:
            return Frame(seen, reward=1.0, done=True, won=True)
        k = next(k for k in range(5) if self.digits[k] != goal[k])
        advice = Action(reason=" ".join(map(str, goal)), command=f"put {goal[k]} in place {k + 1}")
        return Frame(seen, self._commands(), advice=advice)
