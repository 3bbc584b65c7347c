"""Samples in the making: branches that grow side by side behind a prompt, which is read once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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

    The tokens of those that go on are computed behind all that were computed before; each sees the
    prompt and its own branch.
    """

    def __init__(self, row: Row, key: tuple[int, int], draw: Draw, room: int) -> None:
        """For the prompt `row`, with its random stream, up to `room` tokens each."""
        self.row = row
        self.all = [Branch() for _ in range(draw.n)]
        self.open = list(range(draw.n))
        """The numbers of those that are not finished."""
        self._stream = generator(key, 0)
        self._room = min(room, draw.max_tokens)
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._positions: list[int] = []
        self._last = [-1] * draw.n
        self._tree = np.zeros((draw.n, 0), dtype=np.bool_)
        """[branches, computed tokens]: which are the branch's."""

    def uniform(self) -> npt.NDArray[np.float64]:
        """What the next tokens of the open branches are drawn by.

        Each branch has its own numbers, whichever others are finished.
        """
        return self._stream.random(len(self.all))[self.open]

    def extend(
        self,
        tokens: Sequence[int],
        log_probs: Sequence[float],
        ends: Collection[int],
        stopped: Callable[[Sequence[int]], bool],
    ) -> None:
        """Add a token to each open branch; `ends` and `stopped` say which are finished by it."""
        for number, token, log_prob in zip(self.open, tokens, log_probs, strict=True):
            branch = self.all[number]
            branch.ids.append(token)
            branch.log_probs.append(log_prob)
            if token in ends:
                branch.end = "mark"
            elif stopped(branch.ids):
                branch.end = "stop"
            elif len(branch.ids) == self._room:
                branch.end = "limit"
        self.open = [number for number in self.open if not self.all[number].end]

    def segment(self) -> Segment:
        """The last tokens of the open branches, to be computed."""
        row, known = self.row, len(self._tokens)
        tokens = [self.all[number].ids[-1] for number in self.open]
        positions = [len(row.ids) + len(self.all[self.open[0]].ids) - 1] * len(tokens)
        between = self._positions.copy()
        tree = None
        if len(self.all) > 1:
            grown = np.zeros((len(self.all), known + len(tokens)), dtype=np.bool_)
            grown[:, :known] = self._tree
            grown[self.open, range(known, known + len(tokens))] = True
            self._tree = grown
            tree = grown[self.open]
        self._parents += [self._last[number] for number in self.open]
        for column, number in enumerate(self.open, known):
            self._last[number] = column
        self._tokens += tokens
        self._positions += positions
        start = len(row.ids)
        return Segment(start + known, row.store, tokens, positions, start, tree, between)

    def tail(self, length: int) -> Tail:
        """What lies behind the first `length` tokens of the prompt: its rest, and all branches."""
        rest = self.row.ids[length:]
        parents = [*range(-1, len(rest) - 1), *(parent + len(rest) for parent in self._parents)]
        return Tail([*rest, *self._tokens], parents)
