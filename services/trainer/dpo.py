"""Online DPO: π_i from preferences that arrive while it is trained (eq. 3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer

from agentprm.config import DPOSettings
from agentprm.encoding import Tokenizer
from agentprm.prompts import Prompt
from agentprm.protocol import Preference
from services.trainer.canaries import MakeCanary, policy_canary
from services.trainer.fitting import (
    Log,
    Metrics,
    Progress,
    Save,
    StepMeanTrainer,
    common_arguments,
    gather_weights,
    ignore,
    load_tokenizer,
    passes,
    processes,
    report,
    save_fit,
    throughput,
)
from services.trainer.losses import weighted_nll
from services.trainer.rows import action_row

Publish = Callable[[Save, int], None]
"""Takes what writes the weights of now to a directory, and the optimizer step they are of."""

_Row = dict[str, list[int]]


class NoPreferencesError(ValueError):
    """There was nothing, or not enough for one step, to train on."""


def fit_dpo(
    policy: Path,
    reference: Path,
    preferences: Iterable[Preference],
    out: Path,
    settings: DPOSettings,
    prompt: Prompt,
    publish: Publish = ignore,
    *,
    log: Log = ignore,
    progress: Progress = ignore,
) -> Metrics:
    """Train `policy` towards the chosen and away from the rejected actions; write it to `out`.

    `preferences` is read while training goes on and may wait for the next: a batch is taken when
    its optimizer step is due, and nothing ahead of it (the first preference is read at the start).
    Training ends after `settings.max_steps`, or when there are no more. Every
    `settings.publish_every` steps `publish` gets the weights; training waits until it returns.
    With several processes only the main one reads `preferences` and calls `publish`.

    Raises:
        NoPreferencesError: too few preferences came that were short enough.
    """
    tokenizer = load_tokenizer(policy)
    stream = _Stream(preferences, tokenizer, prompt, settings)
    with common_arguments(settings, settings.max_steps) as arguments:
        trainer = _OnlineDPO(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            ref_model=AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
            args=DPOConfig(
                **arguments,
                max_length=None,
                beta=settings.beta,
            ),
            train_dataset=Dataset.from_list([stream.first()]),
            processing_class=tokenizer,
        )
        trainer.stream, trainer.chosen_weight = stream, settings.chosen_weight
        trainer.add_callback(
            _Publisher(trainer, publish, settings.publish_every, policy_canary(prompt))
        )
        report(trainer, log, progress)
        result = trainer.train()
        if result.global_step == 0:
            raise NoPreferencesError(f"{stream.used} preferences are too few for one step")
        last = [line for line in trainer.state.log_history if "rewards/margins" in line][-1]
        metrics = {
            "loss": result.training_loss,
            "steps": float(result.global_step),
            "preferences": float(stream.used),
            "too_long": float(stream.too_long),
            "accuracy": float(last["rewards/accuracies"]),
            "margin": float(last["rewards/margins"]),
            **throughput(stream.tokens, result.metrics["train_runtime"]),
        }
        facts = {
            "kind": "dpo",
            "template_hash": prompt.hash,
            "settings": settings.model_dump(),
            "metrics": metrics,
        }
        save_fit(trainer, tokenizer, out, facts, policy_canary(prompt))
    return metrics


class _OnlineDPO(StepMeanTrainer, DPOTrainer):
    """TRL's DPOTrainer over a stream of rows that are tokenised already."""

    stream: _Stream
    chosen_weight: float

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The number of tokens of the chosen actions."""
        return _chosen(batch["completion_mask"]).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        *,
        num_items_in_batch: Tensor,
    ) -> Any:
        """TRL's loss, and the chosen actions' negative log-likelihood from the same pass.

        TRL's own term for the latter is a mean over a batch. That of the preferences is so too,
        but every batch has as many of them.
        """
        passed: list[Any] = []
        handle = model.register_forward_hook(lambda _model, _inputs, given: passed.append(given))
        try:
            loss = super().compute_loss(model, inputs)
        finally:
            handle.remove()
        nll = weighted_nll(passed[0].log_probs.chunk(2)[0], _chosen(inputs["completion_mask"]))
        own = loss / self.current_gradient_accumulation_steps
        return own + self.chosen_weight * self.scaled(nll, num_items_in_batch)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The stream, batch by batch. Not by way of accelerate, which reads one batch ahead."""
        return DataLoader(self.stream, batch_size=None, collate_fn=self.data_collator)


class _Stream(IterableDataset[list[_Row]]):
    """Preferences as batches of rows, read when an optimizer step is due.

    What a step reads is sorted by length, so that little is padding, and cut into one batch for
    each accumulated pass, which the processes share.
    """

    def __init__(
        self,
        preferences: Iterable[Preference],
        tokenizer: Tokenizer,
        prompt: Prompt,
        settings: DPOSettings,
    ) -> None:
        state = processes()
        self.used = self.too_long = self.tokens = 0
        self.passes = passes(settings)
        self._world, self._rank = state.num_processes, state.process_index
        self._pairs = max(settings.batch_pairs, self.passes * self._world)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._max_tokens = settings.max_tokens
        self._rows = self._encoded(preferences)

    def first(self) -> _Row:
        """The first row, which stays in the stream."""
        head = self._together(lambda: list(itertools.islice(self._rows, 1)))
        if not head:
            raise NoPreferencesError("no preference came, or none was short enough")
        self._rows = itertools.chain(head, self._rows)
        return head[0]

    def __iter__(self) -> Iterator[list[_Row]]:
        parts = self.passes * self._world
        while rows := self._together(lambda: list(itertools.islice(self._rows, self._pairs))):
            usable = len(rows) // parts * parts  # the last few may be too few to go round
            rows = sorted(rows[:usable], key=lambda row: len(row["prompt_ids"]))
            self.used += usable
            self.tokens += sum(map(_tokens, rows))
            size = usable // self.passes
            for start in range(0, usable, max(size, 1)):
                yield rows[start : start + size][self._rank :: self._world]

    def _together(self, read: Callable[[], list[_Row]]) -> list[_Row]:
        """What the main process reads, in every process."""
        if self._world == 1:
            return read()
        box = [read() if self._rank == 0 else []]
        rows: list[_Row] = broadcast_object_list(box)[0]
        return rows

    def _encoded(self, preferences: Iterable[Preference]) -> Iterator[_Row]:
        for preference in preferences:
            chosen, rejected = (
                action_row(self._tokenizer, self._prompt, preference.state, action)
                for action in (preference.chosen, preference.rejected)
            )
            if max(len(chosen[0]), len(rejected[0])) > self._max_tokens:
                self.too_long += 1
                continue
            start = chosen[1][0]
            yield {
                "prompt_ids": chosen[0][:start],
                "chosen_ids": chosen[0][start:],
                "rejected_ids": rejected[0][start:],
            }


def _chosen(completion_mask: Tensor) -> Tensor:
    """Which of the predicted tokens belong to a chosen action; the batch is [chosen, rejected]."""
    return completion_mask.chunk(2)[0][:, 1:]


def _tokens(row: _Row) -> int:
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


class _Publisher(TrainerCallback):
    """Hands out the weights every few steps."""

    def __init__(
        self, trainer: DPOTrainer, publish: Publish, every: int, make_canary: MakeCanary
    ) -> None:
        self._trainer = trainer
        self._publish = publish
        self._every = every
        self._make_canary = make_canary

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """One optimizer step is done."""
        if state.global_step % self._every:
            return
        save = gather_weights(self._trainer, self._trainer.processing_class, self._make_canary)
        if state.is_world_process_zero:
            self._publish(save, state.global_step)
        self._trainer.accelerator.wait_for_everyone()
