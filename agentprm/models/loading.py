"""A checkpoint on a device, as the services load it. It needs torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from agentprm.models.devices import pick_dtype
from agentprm.models.weights import copy_from_file, require_all


def load_model(
    path: Path, kind: Any, *, device: torch.device, dtype: str, unused: Sequence[str] = ()
) -> Any:
    """The model in the directory `path`: safetensors only, nothing fetched or executed.

    Args:
        kind: transformers' class for it, such as `AutoModelForCausalLM`.
        dtype: the precision, as `pick_dtype` takes it.
        unused: as `require_all` takes it.

    Raises:
        CheckpointError: as `require_all`.
        OSError, ValueError, RuntimeError: transformers cannot read it.
    """
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    model, info = kind.from_pretrained(
        path,
        dtype=pick_dtype(dtype, device, config.dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    require_all(path, info, unused=unused)
    model = model.to(device)
    copy_from_file(model)
    return model
