"""Attention of fits on a CPU: without masks, and in float32 where the rest computes in bf16.

torch's attention has a backward pass for bf16 on CPUs that takes twice the time of the one for
float32, and with a mask it computes what the mask hides. Rows are padded on the right, where no
causal attention looks, so that they need none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "agentprm_cpu"


def attend_on_cpu(model: PreTrainedModel) -> None:
    """Have `model` compute its attention without masks for padding, in float32 under autocast.

    A model that computes it by another way than torch's own is left as it is.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        attended, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **options
        )
    return attended.to(query.dtype), None


def _mask(
    *sizes: Any, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **how: Any
) -> Tensor | None:
    """transformers' mask, and none for a causal one that only adds padding on the right."""
    if allow_is_causal_skip and attention_mask is not None and _pads_right(attention_mask):
        attention_mask = None
    mask: Tensor | None = sdpa_mask(
        *sizes, attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **how
    )
    return mask


def _pads_right(mask: Tensor) -> bool:
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
