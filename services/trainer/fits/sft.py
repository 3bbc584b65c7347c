"""Supervised fine-tuning: π_0 from demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from agentprm.config import SFTSettings
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode
from services.trainer.tiny.renumber import Numbers, pass_seeds
from services.trainer.training.batches import TokenBatches, padded
from services.trainer.training.canaries import policy_canary
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    common_arguments,
    ignore,
    load_tokenizer,
    steps_of,
)
from services.trainer.training.log_probs import token_log_probs
from services.trainer.training.losses import weighted_nll
from services.trainer.training.optim import MuonAdamW
from services.trainer.training.policy_model import load_policy
from services.trainer.training.rows import Row, all_rows, require_rows
from services.trainer.training.saving import save_fit
from services.trainer.training.trainers import TokenBatchTrainer, train_through


def fit_sft(
    base: Path,
    episodes: Sequence[Episode],
    out: Path,
    settings: SFTSettings,
    prompt: PromptTemplate,
    *,
    seed: int,
    hints: Sequence[str] | None = None,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Train the causal model in `base` on what the agent does in `episodes`; write it to `out`.

    `hints[i]`, where given, is read with episode i.

    Raises:
        NothingToTrainOnError: no episode has a turn within `max_tokens`.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(base)
    passes = []
    for each in pass_seeds(settings, seed):
        read, hinted = [], []
        for episode, hint in zip(episodes, hints or [""] * len(episodes), strict=True):
            numbers = Numbers.of_episode(episode, settings.renumbered, each, hint)
            read.append(numbers.episode(episode))
            hinted.append(numbers.text(hint))
        rows = all_rows(tokenizer, prompt, read, settings.max_tokens, hinted)
        require_rows(rows, read, settings.max_tokens)
        passes.append([row for _, row in rows])
    return fit_rows(base, passes, out, settings, prompt, seed=seed, log=log, progress=progress)


def fit_rows(
    base: Path,
    passes: Sequence[Sequence[Row]],
    out: Path,
    settings: SFTSettings,
    prompt: PromptTemplate,
    facts: Mapping[str, Any] | None = None,
    *,
    seed: int,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Train the causal model in `base` on the spans of rows; write it to `out`.

    An epoch goes through the rows of one of `passes`, behind the last through the first's again.

    The loss is the mean negative log-likelihood of the tokens, one of a span with weight 1 and
    any other with `settings.observation_weight`, or 0 where a row has `only_spans`.
    What `facts` say of the fit goes into `agentprm.json`, and `prompt` makes the canary. `seed` is
    that of batches and dropout.

    Raises:
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(base)
    lengths = [[len(row.ids) for row in rows] for rows in passes]
    batches = TokenBatches(lengths, settings.batch_tokens, settings.epochs, seed)
    with common_arguments(settings, steps_of(batches, settings), seed) as arguments:
        model = load_policy(base)
        trainer = _WeightedSFT(
            model=model,
            args=SFTConfig(
                **arguments,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list(
                [
                    {"input_ids": row.ids, "weights": _weights(row, settings)}
                    for row in chain.from_iterable(passes)
                ]
            ),
            data_collator=_Collator(tokenizer.pad_token_id),
            processing_class=tokenizer,
        )
        trainer.settings = settings
        metrics = train_through(batches, trainer, settings.accumulation, log, progress)
        metrics["rows"] = float(len(passes[0]))
        known = {
            **(facts or {"kind": "sft"}),
            "template_hash": prompt.hash,
            "settings": settings.model_dump(),
            "seed": seed,
            "metrics": metrics,
        }
        save_fit(trainer, tokenizer, out, known, policy_canary(prompt))
    return metrics


class _WeightedSFT(TokenBatchTrainer, SFTTrainer):
    """TRL's SFTTrainer with a weight for each token."""

    settings: SFTSettings

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the settings; not given from outside, as FSDP has to make it."""
        if self.settings.optimizer == "muon":
            self.optimizer = MuonAdamW(
                self.model if model is None else model,
                muon_lr=self.settings.muon_learning_rate,
                adamw_lr=self.settings.learning_rate,
                weight_decay=self.settings.weight_decay,
                dtype=torch.bfloat16 if self.args.bf16 else torch.float32,
            )
        created: torch.optim.Optimizer = super().create_optimizer(model)
        return created

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The weight of all tokens that are predicted."""
        return batch["weights"][:, 1:].sum()

    def total(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The weighted negative log-likelihood of the tokens."""
        weights = inputs["weights"]
        log_probs = token_log_probs(
            model, inputs["input_ids"], inputs["attention_mask"], weights > 0
        )
        return weighted_nll(log_probs, weights[:, 1:])


class _Collator:
    """Pads rows on the right; the weight of padding is 0. Of no rows it makes one of padding."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        rows = rows or [{"input_ids": [self.pad_token_id] * 2, "weights": [0.0, 0.0]}]
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": padded(ids, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids]),
            "weights": padded([row["weights"] for row in rows], dtype=torch.float),
        }


def _weights(row: Row, settings: SFTSettings) -> list[float]:
    weights = [0.0 if row.only_spans else settings.observation_weight] * len(row.ids)
    for start, end in row.spans:
        weights[start:end] = [1.0] * (end - start)
    return weights
