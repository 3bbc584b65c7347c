"""Settings of the policy updates beside online DPO."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from agentprm.config._fits import OnlineSettings, SFTSettings


class PolicyUpdate(StrEnum):
    """How π_i is made of π_{i-1} (stage 3)."""

    ONLINE_DPO = "online-dpo"
    """Best against worst of the current policy's candidates, by the PRM."""
    GRPO = "grpo"
    """Policy gradient on all of its candidates, each against the mean of its state."""
    REJECTION = "rejection"
    """Fine-tuning on the best of n candidates of π_{i-1}, by the PRM."""
    OUTCOME_REJECTION = "outcome-rejection"
    """Fine-tuning on the rollouts of π_{i-1} that were won; a control without a PRM."""


class GRPOSettings(OnlineSettings):
    """Policy gradient with the PRM's scores as rewards, relative to the candidates of a state."""

    batch_groups: int = Field(default=16, ge=1)
    """States in an optimizer step, over all processes; `accumulation` cuts them in parts."""
    reuse: int = Field(default=2, ge=1)
    """Optimizer steps on the same states. From the second on the clipped ratio matters."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """The ratio of a token's probability to that at its first step counts in [1 - clip, 1 + clip].
    """
    beta: float = Field(default=0.05, ge=0)
    """Weight of the KL divergence from π_{i-1} (eq. 3): what a nat of it costs, in units of Q."""


class RejectionSettings(SFTSettings):
    """Fine-tuning on actions, or on rollouts, that were selected."""

    epochs: int = Field(default=1, ge=1)
    """Passes over them."""
    observation_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of any other token in the loss; those of the selected actions have weight 1."""
