"""`services.trainer.fit` under FSDP on a CPU.

accelerate shards only what runs on an accelerator, and takes DDP for processes on CPUs, silently.
Torch itself shards on CPUs as well: here accelerate is told that these processes are not on CPUs.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from services.trainer.fit import main


def _sharding(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = _sharding
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    code = main()
    assert Accelerator().is_fsdp2
    sys.exit(code)
