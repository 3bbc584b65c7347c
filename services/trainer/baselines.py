"""Baselines that train: the loop of the paper with another way from π_{i-1} to π_i.

Demonstrations, π_0, games and evaluation are the loop's own, so that their rows can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from agentprm.config import Algorithm
from agentprm.results import Row
from services.trainer.loop import Loop


class Baseline(Loop, ABC):
    """π_0, then K times `improve`; there is no PRM."""

    def train(self) -> list[Row]:
        """Everything from demonstrations to the table, going on where an earlier run stopped.

        Raises:
            BaseModelError, DemonstrationsError: as `Loop.train`.
        """
        self.start()
        rows = self._with_row([], 0, None)
        for i in range(1, self.config.iterations + 1):
            self.improve(i)
            rows = self._with_row(rows, i, None)
        return rows

    @abstractmethod
    def improve(self, i: int) -> None:
        """π_i, once π_{i-1} is there."""


class MoreSFT(Baseline):
    """The demonstrations again, for as many episodes as an iteration's PRM is fitted on."""

    def improve(self, i: int) -> None:
        """π_i from π_{i-1}."""
        if self._skip(f"policy/{i}"):
            return
        self._make(f"policy/{i}", "sft", i, self.registry.open(f"policy/{i - 1}"))


class DAgger(Baseline):
    """DAgger (Ross et al. 2011): the expert says what it would do in the learner's states.

    An iteration plays the games that the loop's stage 1 plays, and takes as many of their states
    as its stage 3 asks about. π_i is fitted anew on the demonstrations and all labels so far.
    """

    def improve(self, i: int) -> None:
        """π_i from the model that π_0 came from."""
        self.roll_out(i - 1, labelled=True)
        if self._skip(f"policy/{i}"):
            return
        self._make(f"policy/{i}", "dagger", i, self._base_model())


LOOPS: dict[Algorithm, type[Loop]] = {Algorithm.SFT: MoreSFT, Algorithm.DAGGER: DAgger}
"""The loops that are not the paper's own."""
