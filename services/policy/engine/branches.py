"""Samples in the making: branches that grow side by side behind a prompt, which is read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agentprm.models.prefix_cache import common_length
from services.policy.engine import Draw
from services.policy.engine.kept import Row, Tail
from services.policy.engine.sampling import generator
from services.policy.engine.segment import Segment


@dataclass
class Branch:
    """One sample."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    end: str = ""
    """`mark`, `stop` or `limit` once it is finished."""


class Branches:
    """The `draw.n` samples of one prompt.

    Behind the prompt a `guess` of how they begin is computed with it, so branches that follow it
    need no pass of their own until they leave it. From there on the tokens of those that are not
    finished are computed behind all that were before; each sees the prompt and its own branch.
    """

    def __init__(
        self, row: Row, key: tuple[int, int], draw: Draw, room: int, guess: Sequence[int]
    ) -> None:
        """For the prompt `row`, with its random stream, up to `room` tokens each."""
        self.row = row
        self.all = [Branch() for _ in range(draw.n)]
        self.guess = guess
        self._stream = generator(key, 0)
        self._uniform: list[npt.NDArray[np.float64]] = []
        self._room = room
        self._tokens: list[int] = []
        """Those computed behind the prompt, with the one before each and their positions."""
        self._parents: list[int] = []
        self._positions: list[int] = []
        self._last = [-1] * draw.n
        """For each branch its last computed token."""
        self._tree = np.zeros((draw.n, 0), dtype=np.bool_)
        """[branches, computed tokens]: which are the branch's."""

    @property
    def new(self) -> int:
        """Tokens to compute at first."""
        return self.row.new + len(self.guess)

    @property
    def logits(self) -> int:
        """Most tokens whose logits are wanted at once: at first, or when all branches are open."""
        return max(1 + len(self.guess), len(self.all))

    @property
    def held(self) -> int:
        """Tokens of the prompt, whose keys and values are needed."""
        return len(self.row.ids)

    def open(self) -> list[int]:
        """The numbers of the branches that are not finished."""
        return [number for number, branch in enumerate(self.all) if not branch.end]

    def following(self, depth: int) -> list[int]:
        """The numbers of the open branches that are the guess's first `depth` tokens."""
        if depth > len(self.guess):
            return []
        followed = self.guess[:depth]
        return [number for number in self.open() if self.all[number].ids == followed]

    def uniform(self, numbers: Sequence[int]) -> list[float]:
        """What the next token of each branch is drawn by.

        It depends on the branch and its length alone, whatever the others do.
        """
        while len(self._uniform) <= max(len(self.all[number].ids) for number in numbers):
            self._uniform.append(self._stream.random(len(self.all)))
        return [self._uniform[len(self.all[number].ids)][number] for number in numbers]

    def extend(
        self,
        number: int,
        token: int,
        log_prob: float,
        ends: Collection[int],
        stopped: Callable[[Sequence[int]], bool],
    ) -> None:
        """Add a token to a branch; `ends` and `stopped` say whether it is finished by it."""
        branch = self.all[number]
        branch.ids.append(token)
        branch.log_probs.append(log_prob)
        if token in ends:
            branch.end = "mark"
        elif stopped(branch.ids):
            branch.end = "stop"
        elif len(branch.ids) == self._room:
            branch.end = "limit"

    def settle(self) -> None:
        """Once no branch follows the guess: what is computed of each, and of all."""
        followed = [common_length(self.guess, branch.ids) for branch in self.all]
        longest = max(followed)
        self._tokens = list(self.guess[:longest])
        self._parents = list(range(-1, longest - 1))
        self._positions = [len(self.row.ids) + k for k in range(longest)]
        self._last = [length - 1 for length in followed]
        self._tree = np.arange(longest) < np.array(followed)[:, None]

    def segment(self) -> Segment:
        """The last tokens of the open branches, to be computed."""
        row, known, growing = self.row, len(self._tokens), self.open()
        start = len(row.ids)
        tokens = [self.all[number].ids[-1] for number in growing]
        positions = [start + len(self.all[number].ids) - 1 for number in growing]
        between = self._positions.copy()
        tree = None
        if len(self.all) > 1:
            columns = range(known, known + len(growing))
            grown = np.zeros((len(self.all), known + len(growing)), dtype=np.bool_)
            grown[:, :known] = self._tree
            grown[growing, columns] = True
            self._tree = grown
            tree = grown[growing]
        self._parents += [self._last[number] for number in growing]
        for column, number in enumerate(growing, known):
            self._last[number] = column
        self._tokens += tokens
        self._positions += positions
        return Segment(start + known, row.store, tokens, positions, start, tree, between)

    def tail(self, length: int) -> Tail:
        """What lies behind the first `length` tokens of the prompt: its rest, and all branches."""
        rest = self.row.ids[length:]
        parents = [*range(-1, len(rest) - 1), *(parent + len(rest) for parent in self._parents)]
        return Tail([*rest, *self._tokens], parents)
