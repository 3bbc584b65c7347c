"""Checkpoints to hand on: the same models with weights of half the size or less."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from agentprm.canary import read_canary
from agentprm.registry import STABLE, CheckpointError, Registry

Dtype = Literal["float16", "bfloat16", "float32"]


def export(registry: Registry, out: Path, dtype: Dtype) -> list[Path]:
    """Write every π_i and Q_i of a registry to `out/policy/<i>` and `out/prm/<i>`.

    Each becomes an ordinary Hugging Face directory with its tokenizer, its facts and its canary,
    whose tolerance is from then on that of rounded weights.

    Raises:
        CheckpointError: there is none, one is damaged, or has weights that do not fit into `dtype`.
        FileExistsError: `out` holds one of them already.
    """
    written = []
    for kind in ("policy", "prm"):
        for version in registry.versions(kind):
            target = out / version
            _convert(registry.open(version), target, kind, dtype)
            written.append(target)
    if not written:
        raise CheckpointError(f"{registry.root} holds neither a policy nor a PRM")
    return written


def _convert(source: Path, target: Path, kind: Literal["policy", "prm"], dtype: Dtype) -> None:
    beside_weights = shutil.ignore_patterns(STABLE, "*.safetensors*")
    if not (source / "config.json").is_file():
        # the list of an ensemble's members, which are exported by themselves
        shutil.copytree(source, target, ignore=beside_weights)
        return
    import torch  # seconds to import
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    model = auto.from_pretrained(source, dtype=getattr(torch, dtype))
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"{source}: {name} is not finite in {dtype}; take bfloat16")
    shutil.copytree(source, target, ignore=beside_weights)
    model.save_pretrained(target)
    canary = read_canary(target, kind)
    if canary is not None:
        canary.model_copy(update={"dtype": dtype}).write(target)
