"""Checkpoints to hand on: the same models with weights of half the size or less."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from agentprm.canary import read_canary
from agentprm.files import fresh_draft, sync, sync_tree
from agentprm.registry import STABLE, CheckpointError, Registry

Dtype = Literal["float16", "bfloat16", "float32"]
_Kind = Literal["policy", "prm"]
_KINDS: tuple[_Kind, ...] = ("policy", "prm")


def export(registry: Registry, out: Path, dtype: Dtype) -> list[Path]:
    """Write every π_i and Q_i of a registry to `out/policy/<i>` and `out/prm/<i>`.

    Each becomes an ordinary Hugging Face directory with its tokenizer, its facts and its canary,
    whose tolerance is from then on that of rounded weights. They come into being complete, and not
    before all of them are: what is interrupted or fails can be done again, in another `dtype` too.

    Raises:
        CheckpointError: there is none, one is damaged, or has weights that do not fit into `dtype`.
        OSError: `out` cannot be written, or holds one of them already.
    """
    versions = {version: kind for kind in _KINDS for version in registry.versions(kind)}
    if not versions:
        raise CheckpointError(f"{registry.root} holds neither a policy nor a PRM")
    for version in versions:
        if (out / version).exists():
            raise FileExistsError(f"{out / version} exists already")
    out.mkdir(parents=True, exist_ok=True)
    with fresh_draft(out) as draft:
        for version, kind in versions.items():
            _convert(registry.open(version), draft / version, kind, dtype)
        sync_tree(draft)
        return [_publish(draft / version, out / version) for version in versions]


def _publish(draft: Path, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    draft.rename(target)
    sync(target.parent)
    return target


def _convert(source: Path, target: Path, kind: _Kind, dtype: Dtype) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(STABLE, "*.safetensors*"))
    if (source / "config.json").is_file():  # else it lists an ensemble's members, exported as well
        _write_rounded(source, target, kind, dtype)


def _write_rounded(source: Path, target: Path, kind: _Kind, dtype: Dtype) -> None:
    import torch  # seconds to import
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    try:
        model = auto.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True)
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise CheckpointError(f"{source}: {name} is not finite in {dtype}; take bfloat16")
        model.save_pretrained(target)
    except SafetensorError as error:  # of a full disk, too
        raise CheckpointError(f"{source} cannot be exported: {error}") from error
    canary = read_canary(target, kind)
    if canary is not None:
        canary.model_copy(update={"dtype": dtype}).write(target)
