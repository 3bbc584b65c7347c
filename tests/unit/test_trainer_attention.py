"""Attention of fits on a CPU: without a mask where the rows are padded on the right."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from services.trainer.tiny.model import create_tiny
from services.trainer.training.attention import attend_on_cpu

MASKS = {
    "none": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
    "left": [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
}


@pytest.mark.parametrize("name", MASKS)
def test_it_gives_the_real_tokens_what_transformers_gives(name: str, tmp_path: Path) -> None:
    create_tiny(tmp_path)
    ids = torch.randint(5, 200, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor(MASKS[name])
    theirs, ours = (AutoModelForCausalLM.from_pretrained(tmp_path) for _ in range(2))
    attend_on_cpu(ours)
    assert ours.config._attn_implementation != theirs.config._attn_implementation
    want, gradient = _logits_and_gradient(theirs, ids, mask)
    found, own = _logits_and_gradient(ours, ids, mask)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(own, gradient)


@pytest.mark.parametrize(("name", "masked"), [("none", False), ("right", False), ("left", True)])
def test_only_padding_on_the_left_makes_a_mask(name: str, masked: bool, tmp_path: Path) -> None:
    create_tiny(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    attend_on_cpu(model)
    masks: list[Tensor | None] = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _module, _args, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    model(input_ids=torch.full((2, 5), 7), attention_mask=torch.tensor(MASKS[name]))
    assert [mask is not None for mask in masks] == [masked]


def _logits_and_gradient(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    logits.square().mean().backward()
    gradient = model.get_input_embeddings().weight.grad
    return logits.detach(), gradient
