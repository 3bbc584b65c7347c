"""The two algorithms of the paper; they differ in what their PRM is fitted on."""

from __future__ import annotations

from enum import StrEnum


class Algorithm(StrEnum):
    """Where Q comes from. What comes before it and after it is the same."""

    AGENT_PRM = "agent-prm"
    """Algorithm 1: from the outcomes of the policy's rollouts."""
    INVERSE_PRM = "inverse-prm"
    """Algorithm 2: from what tells the expert's transitions from the policy's, and no outcome."""
