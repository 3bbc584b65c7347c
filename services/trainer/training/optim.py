"""Muon with AdamW as one optimizer, for models made from scratch. Others take Trainer's AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn

from services.trainer.training.muon import Muon

BETAS = (0.9, 0.95)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices between the embeddings, AdamW for all the rest, as one optimizer.

    It has a parameter group for each, so a schedule scales both rates alike. Its state is not
    saved: a fit is repeated from its start, not continued. `dtype` is that of Muon's products of
    matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        muon_lr: float,
        adamw_lr: float,
        dtype: torch.dtype,
        weight_decay: float = 0.0,
    ) -> None:
        outer = {
            id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
        }
        hidden: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                inner = parameter.ndim == 2 and id(parameter) not in outer
                inner = inner and not name.startswith(("lm_head", "score"))
                (hidden if inner else rest).append(parameter)
        super().__init__(
            [{"params": hidden, "lr": muon_lr}, {"params": rest, "lr": adamw_lr}], defaults={}
        )
        self._parts = (
            Muon(hidden, lr=muon_lr, weight_decay=weight_decay, dtype=dtype),
            torch.optim.AdamW(
                rest, lr=adamw_lr, betas=BETAS, weight_decay=weight_decay, fused=True
            ),
        )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both, at the rates that the groups have now."""
        loss = closure() if closure else None
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # The parameters may be others than at first: FSDP puts its shards in their place.
            part.param_groups[0].update(lr=group["lr"], params=group["params"])
            part.step()
        return loss
