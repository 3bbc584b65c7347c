"""Settings shared by all fits, and those of SFT, PRM and DPO.

The defaults suit a pretrained model of some billion parameters.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentprm.config._settings import Settings
from agentprm.ensembles import MAX_MEMBERS


class FitSettings(Settings):
    """What every fit takes."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    warmup_fraction: float = Field(default=0.03, ge=0, le=0.5)
    """Part of the steps in which the learning rate rises. The first has a part of it, not 0."""
    decay_fraction: float = Field(default=0.4, ge=0, le=0.5)
    """Part of the steps, at the end, in which the learning rate falls towards 0. Of an online fit
    these are the last of `max_steps`: one whose preferences end before ends at the rate of then."""
    accumulation: int = Field(default=1, ge=1)
    """Batches of one optimizer step. All processes share them: with four processes each computes a
    quarter of them, and where there are fewer batches than processes, a part of one."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    max_tokens: int = Field(default=4096, ge=16)
    """Longest conversation; later turns of a longer one are left out."""
    renumbered: float = Field(default=0.0, ge=0, le=1)
    """Share of what is read, in every pass another, that has other numbers of its places and
    things, so that `drawer 13` is not only what some rooms have. Of ALFWorld's rooms alone."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast; `auto` is bf16 where the device computes in it. Weights stay float32."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of this process, on a CPU."""
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between two logged lines."""


class SFTSettings(FitSettings):
    """Supervised fine-tuning on demonstrations."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the demonstrations."""
    batch_tokens: int = Field(default=16_384, ge=16)
    """Tokens in a batch, padding included."""
    observation_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of an observation's token in the loss; the agent's own tokens have weight 1."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for hidden matrices and AdamW for the rest, for a model made from scratch."""
    muon_learning_rate: float = Field(default=6e-3, gt=0)
    """Peak learning rate of the hidden matrices, with `muon`."""


class PRMSettings(FitSettings):
    """Fitting Q(s, a)."""

    accumulation: int = Field(default=1, ge=1)
    """Batches of one optimizer step, over all processes. A batch has episodes of similar length,
    and how long one is says how it ended: from a small batch alone a step learns that all are won,
    or that none is. Several even that out; where there are few episodes, they leave few steps."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the rollouts."""
    batch_tokens: int = Field(default=16_384, ge=16)
    """Tokens in a batch, padding included."""
    warm_start: bool = False
    """Begin with the PRM of the iteration before, where there is one, and not with the policy."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Part of the games that is held out to measure the fit, about; a hash of a game decides.
    All PRMs of a run hold out the same."""
    members: int = Field(default=1, ge=1, le=MAX_MEMBERS)
    """PRMs fitted alike but for their seeds, `prm/<i>.1` and so on; more than one serve together
    as `prm/<i>`, by their mean."""
    objective: Literal["absolute", "relative"] = "absolute"
    """`absolute`: Q̂ itself (eq. 2). `relative`: which of two actions in one state has the higher
    Q̂ (section 2.3)."""
    pair_margin: float = Field(default=0.1, gt=0, le=1)
    """With `relative`, least difference in Q̂ between the two actions of a pair."""


class OnlineSettings(FitSettings):
    """Fitting a policy on samples of it that come in meanwhile."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    max_steps: int = Field(default=200, ge=1)
    """Optimizer steps, if the samples last as long. Warm-up and decay are laid over all of them:
    where the samples end before, the fit ends at the rate that it then has, the peak if no decay
    has begun. If a decay is wanted, set this near what the states give."""
    publish_every: int = Field(default=10, ge=1)
    """Optimizer steps between two sets of weights handed to the policy service."""
    keep_every: int = Field(default=0, ge=0)
    """Optimizer steps between two sets of weights that stay, as `online/<i>.<step>`; 0 keeps none.
    Those that are not handed to the policy service are not kept: take a multiple."""


class DPOSettings(OnlineSettings):
    """Online DPO against the previous policy."""

    batch_pairs: int = Field(default=16, ge=1)
    """Preferences, anchors among them, in an optimizer step, over all processes; `accumulation`
    cuts them in parts."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the KL penalty towards the reference policy (eq. 3)."""
    chosen_weight: float = Field(default=0.05, ge=0)
    """Weight of the chosen action's negative log-likelihood (a mean over tokens) in the loss."""
