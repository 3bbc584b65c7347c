"""Online DPO: π_i from preferences that arrive while it is trained (eq. 3).

The loss of a preference is −log σ(β [Δ(chosen) − Δ(rejected)]), with Δ(a) the log-ratio
log π(a | s) − log π_{i-1}(a | s) (Rafailov et al. 2023). The negative log-likelihood of the chosen
actions is added with a small weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from agentprm.config import DPOSettings
from agentprm.encoding import Tokenizer
from agentprm.models.remembering import RememberingTokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Preference
from services.trainer.fits.online import OnlineTrainer, fit_online
from services.trainer.tiny.renumber import Numbers
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    common_arguments,
    ignore,
    load_tokenizer,
    own_batches,
)
from services.trainer.training.losses import weighted_nll
from services.trainer.training.policy_model import load_policy
from services.trainer.training.rows import answer_rows
from services.trainer.training.sharding import shard_reference
from services.trainer.training.streaming import Publish, Stream

_Row = dict[str, list[int]]


def fit_dpo(
    policy: Path,
    reference: Path,
    preferences: Iterable[Preference],
    out: Path,
    settings: DPOSettings,
    prompt: PromptTemplate,
    publish: Publish = ignore,
    *,
    seed: int,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Train `policy` towards the chosen and away from the rejected actions; write it to `out`.

    `preferences` is read while training goes on and may wait for the next: a batch is taken when
    its optimizer step is due, and nothing ahead of it (the first preference is read at the start).
    Training ends after `settings.max_steps`, or when there are no more. Every
    `settings.publish_every` steps `publish` gets the weights; training waits until it returns.
    With several processes only the main one reads `preferences` and calls `publish`. `seed` is that
    of dropout and of numbers drawn anew.

    Raises:
        NoSamplesError: too few preferences came that were short enough.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(policy)
    remembering = RememberingTokenizer(tokenizer)  # states of an episode begin alike
    stream = Stream(
        preferences,
        lambda preference: _row(remembering, prompt, preference, settings, seed),
        _tokens,
        rows=settings.batch_pairs,
        own_batches=own_batches(settings),
    )
    with common_arguments(settings, settings.max_steps, seed) as arguments:
        trainer = _OnlineDPO(
            model=load_policy(policy),
            ref_model=load_policy(reference),
            args=DPOConfig(
                **arguments,
                max_length=None,
                beta=settings.beta,
            ),
            train_dataset=Dataset.from_list([stream.first()]),
            processing_class=tokenizer,
        )
        trainer.stream, trainer.chosen_weight = stream, settings.chosen_weight
        return fit_online(
            trainer, out, settings, prompt, publish, seed=seed, log=log, progress=progress
        )


class _OnlineDPO(OnlineTrainer, DPOTrainer):
    """TRL's DPOTrainer over a stream of rows that are tokenised already."""

    kind = "dpo"
    samples = "preferences"
    last = ("accuracy", "margin")
    stream: Stream[Preference, _Row]
    chosen_weight: float

    def __init__(self, *, ref_model: PreTrainedModel, **arguments: Any) -> None:
        self._reference = ref_model
        self._pairs: list[int] = []
        self._different = torch.tensor(0)
        super().__init__(ref_model=ref_model, **arguments)

    def create_accelerator_and_postprocess(self) -> None:
        """Shards the reference, once the accelerator is there and before TRL does."""
        super().create_accelerator_and_postprocess()
        shard_reference(self._reference, self.accelerator)

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The number of tokens of the chosen actions."""
        return _chosen(batch["completion_mask"]).sum()

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], *, num_items_in_batch: Tensor
    ) -> Tensor:
        """TRL's loss, and the chosen actions' negative log-likelihood from the same pass.

        TRL's own term for the latter is a mean over a batch, and batches differ in their tokens.
        Its loss of preferences is such a mean too, but every batch has the same number of them.
        """
        self._count(inputs)
        # TRL turns checkpointing off and on around the reference's pass, and each time the model's
        # embeddings get another hook, which only adapters have need of.
        self.model.disable_input_require_grads()
        passed: list[Any] = []
        handle = model.register_forward_hook(lambda _model, _inputs, given: passed.append(given))
        try:
            loss = DPOTrainer.compute_loss(self, model, inputs)
        finally:
            handle.remove()
        nll = weighted_nll(passed[0].log_probs.chunk(2)[0], _chosen(inputs["completion_mask"]))
        own: Tensor = loss / self.current_gradient_accumulation_steps
        return own + self.chosen_weight * self.scaled(nll, num_items_in_batch)

    def _count(self, inputs: dict[str, Tensor]) -> None:
        """The preferences of each batch since the last line, and how many are not ties."""
        chosen, rejected = (inputs["input_ids"] * inputs["attention_mask"]).chunk(2)
        self._pairs.append(len(chosen))
        self._different += (chosen != rejected).any(1).sum().cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds how often, and by how much, the chosen of two different actions is preferred.

        TRL's means are of one batch, over ties as well, anchors among them, whose share is 0 of
        either. All processes have the same number of preferences of a batch; batches of the last
        step may have fewer than others.
        """
        different = self.accelerator.reduce(self._different.to(self.args.device), "sum").item()
        measured = self._metrics["train"]
        if different and self._pairs:
            for name, theirs in (("accuracy", "accuracies"), ("margin", "margins")):
                batches = zip(self._pairs, measured[f"rewards/{theirs}"], strict=True)
                total = self.accelerator.num_processes * sum(rows * mean for rows, mean in batches)
                logs[name] = total / different
        self._pairs.clear()
        self._different.zero_()
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def _row(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    preference: Preference,
    settings: DPOSettings,
    seed: int,
) -> _Row | None:
    state = preference.state
    numbers = Numbers.of_state(state, settings.renumbered, seed)
    actions = [numbers.action(action) for action in (preference.chosen, preference.rejected)]
    ids, (chosen, rejected) = answer_rows(tokenizer, prompt, numbers.state(state), actions)
    if len(ids) + max(len(chosen), len(rejected)) > settings.max_tokens:
        return None
    return {"prompt_ids": ids, "chosen_ids": chosen, "rejected_ids": rejected}


def _chosen(completion_mask: Tensor) -> Tensor:
    """Which of the predicted tokens belong to a chosen action; the batch is [chosen, rejected]."""
    return completion_mask.chunk(2)[0][:, 1:]


def _tokens(row: _Row) -> int:
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
