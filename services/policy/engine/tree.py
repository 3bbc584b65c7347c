"""Answers that begin alike, packed into one row.

The commands of a state share REASON and often their first words. As a tree they are computed once:
each token is a node that sees its ancestors only, so one forward pass scores every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agentprm.models.prefix_cache import common_length


@dataclass
class Tree:
    """Token nodes below the last token of a context, and where each answer runs through them.

    An edge stands for the prediction of a token at a node. The last token of an answer is only
    predicted, never a node of its own.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    edge_nodes: list[int] = field(default_factory=list)
    edge_tokens: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    """For each answer its edges, one a token."""

    @classmethod
    def behind(cls, context: Sequence[int]) -> Tree:
        """The context alone, one node after the other."""
        length = len(context)
        return cls(list(context), list(range(-1, length - 1)), list(range(length)))

    def ancestors(self) -> npt.NDArray[np.bool_]:
        """[nodes, nodes]: whether the row's node sees the column's; each sees itself."""
        seen = np.eye(len(self.tokens), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node, :node] = seen[parent, :node]
        return seen


class _Grower:
    """Adds answers to a tree, each beginning where it leaves the one before."""

    def __init__(self, context: Sequence[int]) -> None:
        self.tree = Tree.behind(context)
        self.numbers: list[int] = []
        self._edges: dict[tuple[int, int], int] = {}
        self._below: list[int] = []
        """For each edge the node of its token, -1 where there is none yet."""
        self._root = len(context) - 1
        self._answer: Sequence[int] = ()
        self._path: list[int] = []

    def add(self, number: int, answer: Sequence[int]) -> None:
        """Give the answer its nodes and its path."""
        tree = self.tree
        shared = common_length(self._answer, answer)
        path = self._path[:shared]
        for token in answer[shared:]:
            node = self._node(path[-1]) if path else self._root
            edge = self._edges.setdefault((node, token), len(tree.edge_nodes))
            if edge == len(tree.edge_nodes):
                tree.edge_nodes.append(node)
                tree.edge_tokens.append(token)
                self._below.append(-1)
            path.append(edge)
        tree.paths.append(path)
        self.numbers.append(number)
        self._answer, self._path = answer, path

    def _node(self, edge: int) -> int:
        """The node of an edge's token: some answer goes on behind it."""
        node = self._below[edge]
        if node < 0:
            tree = self.tree
            node = self._below[edge] = len(tree.tokens)
            parent = tree.edge_nodes[edge]
            tree.tokens.append(tree.edge_tokens[edge])
            tree.parents.append(parent)
            tree.depths.append(tree.depths[parent] + 1)
        return node


def build_trees(
    context: Sequence[int], answers: Sequence[Sequence[int]], limit: int
) -> list[tuple[Tree, list[int]]]:
    """Trees that together hold all answers, each tree with the numbers of its own.

    A tree has at most `limit` nodes below its context, unless one answer alone is longer.
    `context` is the part of the prompt, at least its last token, that is not computed yet.
    """
    growers: list[_Grower] = []
    for number, answer in enumerate(answers):
        if not growers or len(growers[-1].tree.tokens) + len(answer) > len(context) + limit:
            growers.append(_Grower(context))
        growers[-1].add(number, answer)
    return [(grower.tree, grower.numbers) for grower in growers]
