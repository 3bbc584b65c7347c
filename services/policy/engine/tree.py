"""Answers that begin alike, packed into one row.

The commands of a state share REASON and often their first words. As a tree they are computed once:
each token is a node that sees its ancestors only, so one forward pass scores every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Tree:
    """Token nodes below the last token of a context, and where each answer runs through them.

    An edge (node, token) stands for the prediction of `token` at `node`. The last token of an
    answer is only predicted, never a node of its own.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    edges: list[tuple[int, int]] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    """For each answer its edges, one a token."""

    def ancestors(self) -> npt.NDArray[np.bool_]:
        """[nodes, nodes]: whether the row's node sees the column's; each sees itself."""
        seen = np.zeros((len(self.tokens), len(self.tokens)), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return seen


def build_trees(
    context: Sequence[int], answers: Sequence[Sequence[int]], limit: int
) -> list[tuple[Tree, list[int]]]:
    """Trees that together hold all answers, each tree with the numbers of its own.

    A tree has at most `limit` nodes below its context, unless one answer alone is longer.
    `context` is the part of the prompt, at least its last token, that is not computed yet.
    """
    trees: list[tuple[Tree, list[int]]] = []
    children: dict[tuple[int, int], int] = {}
    edges: dict[tuple[int, int], int] = {}
    for number, answer in enumerate(answers):
        full = trees and len(trees[-1][0].tokens) + len(answer) > len(context) + limit
        if not trees or full:
            chain = len(context)
            tree = Tree(list(context), list(range(-1, chain - 1)), list(range(chain)))
            trees.append((tree, []))
            children, edges = {}, {}
        tree, numbers = trees[-1]
        numbers.append(number)
        node = len(context) - 1
        path = []
        for position, token in enumerate(answer):
            step = (node, token)
            if step not in edges:
                edges[step] = len(tree.edges)
                tree.edges.append(step)
            path.append(edges[step])
            if position + 1 < len(answer):
                if step not in children:
                    children[step] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(node)
                    tree.depths.append(tree.depths[node] + 1)
                node = children[step]
        tree.paths.append(path)
    return trees
