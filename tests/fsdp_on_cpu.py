"""`tests.fits_in_a_row` under FSDP on a CPU.

accelerate shards only what runs on an accelerator, and takes DDP for processes on CPUs, silently.
Torch itself shards on CPUs as well: here accelerate is told that these processes are not on CPUs.
Whatever model computes, each of its layers has to be sharded by itself, and its gradients after
every batch.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.fits_in_a_row import main


def _sharding(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _require_sharded(module: torch.nn.Module, _: Any) -> None:
    if isinstance(module, LlamaDecoderLayer):
        assert isinstance(module, FSDPModule), "a layer that is gathered with all others"


def _require_sharded_fit() -> None:
    assert GradientState().plugin_kwargs["sync_each_batch"]
    assert Accelerator().is_fsdp2


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = _sharding
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    register_module_forward_pre_hook(_require_sharded)
    sys.exit(main(_require_sharded_fit))
