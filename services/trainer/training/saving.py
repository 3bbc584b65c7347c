"""What a fit leaves behind: its weights, their tokenizer, their canary, and how they were made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from agentprm.facts import METADATA
from services.trainer.training.canaries import MakeCanary


class Save(Protocol):
    """Writes the weights of a fit."""

    def __call__(self, directory: Path, *, rounded: bool = False) -> None:
        """Write weights and tokenizer to `directory`.

        Where they are only served they may be `rounded` to what a GPU serves them in, which is half
        to write, to hash and to read.
        """


def gather_weights(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, make_canary: MakeCanary
) -> Save:
    """What writes the weights as they are now, and their canary.

    All processes call this, the main one writes.
    """
    dtype = "bfloat16" if trainer.args.bf16 else str(trainer.model.dtype).removeprefix("torch.")
    canary = make_canary(trainer.model_wrapped, tokenizer, dtype)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    # Gathered shards no longer tell that two names are one tensor.
    state = {name: state[name] for name in state if name not in model.all_tied_weights_keys}

    def save(directory: Path, *, rounded: bool = False) -> None:
        weights = state
        if rounded := rounded and serves_rounded(trainer):
            weights = {name: state[name].to(torch.bfloat16) for name in state}
        model.save_pretrained(directory, state_dict=weights)
        if rounded:
            config = copy.deepcopy(model.config)
            config.dtype = torch.bfloat16
            config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        canary.write(directory)

    return save


def serves_rounded(trainer: Trainer) -> bool:
    """Whether what `trainer` fits is served in bfloat16: not on a CPU, which serves float32."""
    return bool(trainer.args.bf16 and trainer.args.device.type == "cuda")


def save_fit(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    facts: dict[str, Any],
    make_canary: MakeCanary,
) -> None:
    """Write the trained model, its tokenizer, its canary and, as `agentprm.json`, how it was made.

    All processes call this.
    """
    save = gather_weights(trainer, tokenizer, make_canary)
    if trainer.is_world_process_zero():
        save(out)
        (out / METADATA).write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    trainer.accelerator.wait_for_everyone()
