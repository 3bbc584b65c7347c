"""The search: expand level by level, then back up the values from the leaves (see `Lookahead`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic

from agentprm.protocol import Candidate, Lookahead, Search, State
from services.rollout.planning.model import Arrival, H, Model, Place

Expand = Callable[[Sequence[State], int, int], list[list[Candidate]]]
"""Candidates in states, each with its q: takes the states, the samples of each, and the level."""


@dataclass
class _Branch(Generic[H]):
    """An action in a node. Where the model was not `asked`, or could not tell, it is a leaf."""

    candidate: Candidate
    asked: bool = False
    arrival: Arrival[H] | None = None
    node: _Node[H] | None = None


@dataclass
class _Node(Generic[H]):
    """A state of the tree, and the actions that were tried in it; none at the last level."""

    place: Place[H]
    branches: list[_Branch[H]] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """The action that the search found best, and what it took."""

    candidate: Candidate
    search: Search


def search(
    roots: Sequence[Place[H]], model: Model[H], expand: Expand, plan: Lookahead
) -> list[Choice]:
    """The best action in each place. The trees grow side by side, so that all ask together.

    Raises:
        ValueError: a candidate has no score.
    """
    trees = [_Node(root) for root in roots]
    level = trees
    for depth, width in enumerate(plan.widths):
        found = expand([node.place.state for node in level], width, depth)
        for node, candidates in zip(level, found, strict=True):
            node.branches = [_Branch(candidate) for candidate in candidates]
        level = _grow(level, model) if depth < plan.depth - 1 else []
    return [_choose(tree, plan.gamma) for tree in trees]


def _grow(level: Sequence[_Node[H]], model: Model[H]) -> list[_Node[H]]:
    """Ask the model what follows every branch; the nodes of the next level."""
    moves = [(node, branch) for node in level for branch in node.branches]
    arrivals = model.step([(node.place, branch.candidate.action) for node, branch in moves])
    grown = []
    for (_, branch), arrival in zip(moves, arrivals, strict=True):
        branch.asked, branch.arrival = True, arrival
        if arrival is not None and arrival.place is not None:
            branch.node = _Node(arrival.place)
            grown.append(branch.node)
    return grown


def value(branch: _Branch[H], gamma: float) -> float:
    """Q_k(s, a), where k is the depth of the tree below s.

    Raises:
        ValueError: its candidate, or one that follows, has no score.
    """
    if branch.arrival is None:
        return _q(branch.candidate)
    if branch.node is None:
        return branch.arrival.reward
    if not branch.node.branches:  # a state without candidates
        return _q(branch.candidate)
    following = max(value(after, gamma) for after in branch.node.branches)
    return branch.arrival.reward + gamma * following


def _choose(tree: _Node[H], gamma: float) -> Choice:
    """The best branch; ties are broken as in Best-of-N, after the PRM's own Q."""
    values = [value(branch, gamma) for branch in tree.branches]

    def order(k: int) -> tuple[float, float, int, float, int]:
        candidate = tree.branches[k].candidate
        return (-values[k], -_q(candidate), -candidate.count, -candidate.log_prob, k)

    best = min(range(len(values)), key=order)
    nodes = list(_nodes(tree))
    asked = [branch for node in nodes for branch in node.branches if branch.asked]
    took = Search(
        value=values[best],
        states=len(nodes),
        transitions=len(asked),
        unknown=sum(branch.arrival is None for branch in asked),
    )
    return Choice(tree.branches[best].candidate, took)


def _nodes(node: _Node[H]) -> Iterator[_Node[H]]:
    yield node
    for branch in node.branches:
        if branch.node is not None:
            yield from _nodes(branch.node)


def _q(candidate: Candidate) -> float:
    """The PRM's score; a missing one is an error and never 0."""
    if candidate.q is None:
        raise ValueError(f"no score for {candidate.action.command!r}")
    return candidate.q
