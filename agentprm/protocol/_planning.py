"""Look-ahead: how a search by a model is asked for, and what it took."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_BATCH, MAX_CANDIDATES, Record


class Lookahead(Record):
    """Choose each action by a search, begun anew every turn, whose leaves the PRM scores.

    Of `width` samples of the policy in s the distinct ones are the candidates A(s), and
    Q_1(s, a) = Q(s, a), the PRM's;
    Q_k(s, a) = r(s, a) + gamma max over a' in A(s') of Q_{k-1}(s', a'),
    where s' follows s and a in the model; where the episode ends there, Q_k(s, a) = r(s, a). The
    action is the best of A(s) by Q_depth. So depth 1 is Best-of-N, which asks no model.
    """

    depth: int = Field(default=2, ge=1, le=16)
    """Actions of a path."""
    width: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    """Samples of the policy in a state."""
    shape: Literal["tree", "plans"] = "tree"
    """`plans`: samples `width` first actions and one action in every later state, so each candidate
    is followed by one plan of `depth` actions and not by a tree."""
    model: Literal["learned", "true"] = "learned"
    """`true`: copies of the session. `learned`: a world model."""
    world_version: str | None = None
    """The world model, where the model is learned."""
    gamma: float = Field(gt=0, le=1)
    """The discount of the PRM's targets."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> Lookahead:
        if (self.model == "learned") != (self.world_version is not None):
            raise ValueError("`world_version` belongs to the learned model")
        if self.shape == "tree" and self.width ** (self.depth - 1) > MAX_BATCH:
            raise ValueError(f"a tree of more than {MAX_BATCH} leaf states: less width or depth")
        return self

    @property
    def widths(self) -> list[int]:
        """Samples in a state, by the number of actions before it."""
        deeper = self.width if self.shape == "tree" else 1
        return [self.width] + [deeper] * (self.depth - 1)


class Search(Record):
    """What the search for one action found and took."""

    value: float
    """Q_depth of the action."""
    states: int
    """States in which the policy was sampled and its samples scored by the PRM."""
    transitions: int
    """(s, a) whose outcome the model was asked for."""
    unknown: int
    """Those of them that the model gave no outcome for; there Q takes the place of Q_k."""
