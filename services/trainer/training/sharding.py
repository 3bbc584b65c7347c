"""The reference policy of an online fit under FSDP."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from transformers import PreTrainedModel


def shard_reference(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Shard `model` in place, layer by layer, as accelerate does the policy; elsewhere do nothing.

    TRL, which leaves alone what is sharded already, shards a reference as one piece: each pass
    would gather the weights of all layers at once. (Of FSDP 1 it does so by layers as well.)
    """
    if accelerator.is_fsdp2:
        fsdp2_prepare_model(accelerator, model)
