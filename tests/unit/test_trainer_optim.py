"""Muon beside torch's and beside a decomposition into singular values, and with AdamW as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentprm.config import Scratch
from services.trainer.tiny.model import create_tiny
from services.trainer.training.muon import Muon, orthogonal
from services.trainer.training.optim import MuonAdamW

SHAPES = [(16, 16), (24, 8), (8, 24)]


@pytest.mark.parametrize(("dtype", "within"), [(torch.bfloat16, 0.0), (torch.float32, 2e-3)])
def test_muon_steps_as_that_of_torch_does(dtype: torch.dtype, within: float) -> None:
    numbers = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=numbers) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in starts] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.05, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1),
    )
    for lr in (0.05, 0.02, 0.01):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=numbers)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    for own, other, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=within)
        assert (own - start).abs().max() > 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_changes_the_singular_values_alone(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s /= s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    found = orthogonal(matrix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), u * s @ vt, rtol=0.0, atol=1e-5)


def test_muon_takes_the_hidden_matrices_and_a_schedule_scales_both(tmp_path: Path) -> None:
    create_tiny(tmp_path, shape=Scratch(width=32, layers=1, heads=2, feed_forward=64))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    optimizer = MuonAdamW(model, muon_lr=0.02, adamw_lr=0.01, dtype=torch.float32)
    hidden, rest = (group["params"] for group in optimizer.param_groups)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all("_proj" in names[id(p)] for p in hidden)
    assert {names[id(p)] for p in rest} >= {"model.embed_tokens.weight", "model.norm.weight"}
    assert len(hidden) == 7

    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 0))
    optimizer.step()  # at rate 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    schedule.step()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
