"""The ways to train an agent: those of the paper, and its baselines."""

from __future__ import annotations

from enum import StrEnum


class Algorithm(StrEnum):
    """What makes π_i from π_{i-1}. What comes before it and after it is the same."""

    AGENT_PRM = "agent-prm"
    """Algorithm 1: from the outcomes of the policy's rollouts."""
    INVERSE_PRM = "inverse-prm"
    """Algorithm 2: from what tells the expert's transitions from the policy's, and no outcome."""
    SFT = "sft"
    """A baseline: more supervised fine-tuning on the demonstrations."""
    DAGGER = "dagger"
    """A baseline: imitation of the expert in the states that the policy comes to."""
