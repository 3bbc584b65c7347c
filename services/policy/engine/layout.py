"""What is computed together: items of similar size, up to what a pass may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.policy.engine.branches import Branches
from services.policy.engine.kept import Row, Tail
from services.policy.engine.segment import Segment
from services.policy.engine.tree import Tree


@dataclass(frozen=True)
class Bounds:
    """What a batch has at most, padding included."""

    new: int
    """Tokens of one forward pass."""
    logits: int
    """Those of them that have logits."""
    held: int
    """Tokens whose keys and values it holds."""

    def halved(self) -> Bounds:
        """Those of half the memory."""
        return Bounds(self.new // 2, self.logits // 2, self.held // 2)


@dataclass(frozen=True)
class Planted:
    """A tree of answers, those of the given numbers, behind what is known of a conversation.

    It begins with the rest of the conversation.
    """

    row: Row
    tree: Tree
    answers: list[int]

    @property
    def new(self) -> int:
        """Tokens to compute."""
        return len(self.tree.tokens)

    @property
    def logits(self) -> int:
        """Last ones among them whose logits are wanted: the prompt's last, and all behind it."""
        return self.new - self.row.new + 1

    @property
    def held(self) -> int:
        """Tokens whose keys and values are needed."""
        return self.row.start + self.new

    def segment(self) -> Segment:
        """The tree, to be computed."""
        start, tree = self.row.start, self.tree
        positions = [start + depth for depth in tree.depths]
        return Segment(start, self.row.store, tree.tokens, positions, start, tree.ancestors())

    def tail(self) -> Tail:
        """What lies behind the conversation."""
        context = self.row.new
        parents = [parent - context for parent in self.tree.parents[context:]]
        return Tail(self.tree.tokens[context:], parents)


R = TypeVar("R", Branches, Planted)


def batches(
    items: Iterable[R],
    cost: Callable[[Sequence[int]], int],
    bounds: Bounds,
    room: int = 0,
) -> Iterator[list[R]]:
    """Items in their order, as many together as the bounds allow.

    `cost` counts tokens of items side by side. Each item holds up to `room` further ones. A single
    item may be larger than a batch.
    """
    most = (bounds.new, bounds.logits, bounds.held)
    batch: list[R] = []
    sizes: list[tuple[int, int, int]] = []
    for item in items:
        sizes.append((item.new, item.logits, item.held + room))
        costs = map(cost, zip(*sizes, strict=True))
        if batch and any(taken > bound for taken, bound in zip(costs, most, strict=True)):
            yield batch
            batch, sizes = [], sizes[-1:]
        batch.append(item)
    if batch:
        yield batch
