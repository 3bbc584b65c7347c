"""Batches of rows of similar length under a budget of tokens, so that little is padding."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

CHUNK = 16
"""Batches' worth of rows that are sorted together; more means less padding, fewer less bias."""


class TokenBatches(Sampler[list[int]]):
    """The batches of a whole fit, epoch after epoch, as lists of row indices.

    Each batch times its longest row stays within `budget`, unless one row alone exceeds it.
    """

    def __init__(
        self, passes: Sequence[Sequence[int]], budget: int, epochs: int, seed: int
    ) -> None:
        """`passes` are the lengths of the rows of each pass, rows being numbered through all.

        An epoch takes the next pass, and behind the last the first again.
        """
        self._lengths = list(chain.from_iterable(passes))
        self._batches = [
            batch
            for epoch in range(epochs)
            for batch in _epoch(passes, epoch, budget, random.Random(f"{seed}/{epoch}"))
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    @property
    def tokens(self) -> int:
        """Tokens of all batches together, without padding."""
        return sum(self._lengths[i] for batch in self._batches for i in batch)

    def share(self, accumulation: int, world: int, rank: int) -> list[list[int]]:
        """What process `rank` of `world` computes of steps of `accumulation` batches.

        A step is the same rows, however many processes share them: they get whole batches, and
        where these do not go round, halves of them. A process may get an empty part.
        """
        mine: list[list[int]] = []
        for start in range(0, len(self._batches), accumulation):
            parts = self._batches[start : start + accumulation]
            while len(parts) % world:
                largest = max(range(len(parts)), key=lambda k: len(parts[k]))
                whole = parts[largest]
                parts[largest : largest + 1] = [whole[::2], whole[1::2]]
            mine += parts[rank::world]
        return mine


class AlternatingBatches(TokenBatches):
    """Batches of two sets of rows in turn, the same number of each in an epoch.

    An epoch ends with the set that has fewer batches; of the other that number is drawn anew in
    every epoch. Rows of the second set are numbered on from those of the first.
    """

    def __init__(
        self,
        first: Sequence[Sequence[int]],
        second: Sequence[Sequence[int]],
        budget: int,
        epochs: int,
        seed: int,
    ) -> None:
        """`first` and `second` are the passes of each set, the rest as for `TokenBatches`."""
        self._lengths = list(chain(*first, *second))
        self._batches = []
        before = sum(map(len, first))
        for epoch in range(epochs):
            one, other = (
                _epoch(passes, epoch, budget, random.Random(f"{seed}/{epoch}/{k}"))
                for k, passes in enumerate((first, second))
            )
            for own, others in zip(one, other, strict=False):
                self._batches += [own, [before + i for i in others]]


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """All rows once, from the shortest to the longest, in batches within `budget` when padded."""
    return _under_budget(lengths, sorted(range(len(lengths)), key=lambda i: lengths[i]), budget)


def padded(
    rows: Sequence[Sequence[float]], value: float = 0, dtype: torch.dtype = torch.long
) -> Tensor:
    """The rows as one tensor of shape (rows, longest), filled up with `value` on the right."""
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def _under_budget(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """`order` cut into runs whose padded size stays within `budget`."""
    batches: list[list[int]] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = lengths[i]
        batches[-1].append(i)
    return batches


def _epoch(
    passes: Sequence[Sequence[int]], epoch: int, budget: int, rng: random.Random
) -> list[list[int]]:
    k = epoch % len(passes)
    first, lengths = sum(map(len, passes[:k])), passes[k]
    order = list(range(len(lengths)))
    rng.shuffle(order)
    mean = max(1, sum(lengths) // len(lengths))
    size = max(1, CHUNK * budget // mean)
    batches: list[list[int]] = []
    for start in range(0, len(order), size):
        chunk = sorted(order[start : start + size], key=lambda i: lengths[i])
        batches += _balanced(lengths, chunk, budget)
    rng.shuffle(batches)
    return [[first + i for i in batch] for batch in batches]


def _balanced(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """The fewest batches that the budget allows, of about the same size.

    Each batch weighs the same in the loss, so a remainder of one row would weigh as much as all
    the rows of a full batch. The smallest budget that makes no more batches evens them out.
    """
    fewest = len(_under_budget(lengths, order, budget))
    least = bisect.bisect_left(
        range(budget), True, key=lambda b: len(_under_budget(lengths, order, b)) <= fewest
    )
    return _under_budget(lengths, order, least)
