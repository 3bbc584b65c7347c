"""Early stop of a policy update by true success on a few games.

Every set of published weights plays the same games from the same seeds, so two sets are compared in
pairs: a game counts only where one of them won it and the other did not. A set is worse than the
best so far by more than noise if the one-sided exact sign test (McNemar's) says so at 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentprm.paired import paired

_LEVEL = 0.01
"""Probability of a fall as large as the one seen, where there is none, in one trial. The best of
many trials is better than it should be, so that falls from it are seen more often; over a whole
update, with a patience of 2, it comes to some 5 %."""


@dataclass(frozen=True)
class Trial:
    """The games that a set of weights won. `step` is the optimizer step they are of."""

    version: str
    step: int
    won: tuple[bool, ...]

    @property
    def success(self) -> float:
        """The part of the games that was won."""
        return sum(self.won) / len(self.won)


class Trials:
    """The trials of one policy update, the first of them that of π_{i-1}."""

    def __init__(self, first: Trial, patience: int) -> None:
        self.best = first
        """The trial of the highest success; of equals the latest."""
        self._patience = patience
        self._falls = 0

    def add(self, trial: Trial) -> None:
        """Count one more trial."""
        if trial.success >= self.best.success:
            self.best, self._falls = trial, 0
        elif fell(self.best.won, trial.won):
            self._falls += 1
        else:
            self._falls = 0

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` trials were all worse than the best by more than noise."""
        return self._falls >= self._patience


def fell(before: Sequence[bool], after: Sequence[bool]) -> bool:
    """Whether fewer games are won after than before, by more than noise."""
    return paired(before, after).p_lost < _LEVEL
