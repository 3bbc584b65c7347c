"""The PRM as a model: what it reads of a row, and a logit for each turn in one forward pass."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from services.trainer.targets.monte_carlo import By
from services.trainer.training.batches import padded
from services.trainer.training.rows import Row


@dataclass(frozen=True)
class Sample:
    """An episode, or what one row holds of it, and what is to be read from it."""

    row: Row
    positions: list[int]
    """Of the tokens at which the model is read."""
    targets: list[float]
    outcome: float


def read_at(row: Row, of: By) -> list[int]:
    """The positions in a row at which each of its turns is read.

    Q(s, a) at the action's last token; V(s) at the last one before the action begins, the end of
    the chat template's header for an answer.
    """
    return [end - 1 if of == "action" else start - 1 for start, end in row.spans]


def load_prm(base: Path, pad_token_id: int, seed: int) -> PreTrainedModel:
    """The classifier of `base`, whose forward pass takes positions and gives a logit for each.

    `forward(input_ids, attention_mask, positions)`: positions of shape (batch, turns) are those of
    the last tokens of the actions; the logits have the same shape. `position_ids` are given where
    they do not follow from the order of the tokens. transformers' own forward gives
    one logit a row. It is the method of the model that is replaced, and not a function beside it,
    because distributed wrappers synchronise around that method.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    model.config.pad_token_id = pad_token_id
    model.forward = types.MethodType(_score_turns, model)
    return model


def _score_turns(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    position_ids: Tensor | None = None,
) -> Tensor:
    outputs = self.base_model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
    )
    hidden: Tensor = outputs.last_hidden_state
    index = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    actions = hidden.gather(1, index).float()
    with torch.autocast(actions.device.type, enabled=False):  # bf16 would round Q to two digits
        logits = F.linear(actions, self.score.weight.float())
    return logits.squeeze(-1)


class Collator:
    """Pads rows on the right, and their turns likewise; `turns` marks the real ones.

    Of no rows it makes one of padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The tensors of a batch, those of turns of shape (batch, most turns)."""
        samples = samples or [Sample(Row([self.pad_token_id], [], []), [], [], 0.0)]
        ids = [sample.row.ids for sample in samples]
        targets = [sample.targets for sample in samples]
        return {
            "input_ids": padded(ids, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids]),
            "positions": padded([sample.positions for sample in samples]),
            "targets": padded(targets, dtype=torch.float),
            "turns": padded([[True] * len(row) for row in targets], dtype=torch.bool),
        }
