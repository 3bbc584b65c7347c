"""Policy gradient with the PRM's scores as rewards, in groups of candidates as in GRPO (eq. 3).

The candidates of a state are compared with each other: the advantage of one is its Q less the mean
Q of the others. It is not divided by the group's standard deviation. So it stays in units of Q,
β means the same in every state, and a state whose candidates the PRM hardly tells apart does not
weigh as much as one in which it matters what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments
from trl.models import prepare_fsdp
from trl.trainer.utils import add_fused_lm_head

from agentprm.config import GRPOSettings
from agentprm.encoding import Tokenizer
from agentprm.models.remembering import RememberingTokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Group
from services.trainer.fits.online import OnlineTrainer, fit_online
from services.trainer.tiny.renumber import Numbers
from services.trainer.training.batches import padded
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    common_arguments,
    ignore,
    load_tokenizer,
    own_batches,
)
from services.trainer.training.log_probs import token_log_probs
from services.trainer.training.losses import clipped_policy_loss, squared_log_ratio
from services.trainer.training.policy_model import load_policy
from services.trainer.training.rows import answer_rows
from services.trainer.training.sharding import shard_reference
from services.trainer.training.streaming import Publish, Stream


@dataclass(frozen=True)
class _Row:
    """The candidates of one state: ids, and where in them the action begins."""

    ids: list[list[int]]
    start: int
    advantages: list[float]
    counts: list[int]
    q: list[float]


def fit_grpo(
    policy: Path,
    reference: Path,
    groups: Iterable[Group],
    out: Path,
    settings: GRPOSettings,
    prompt: PromptTemplate,
    publish: Publish = ignore,
    *,
    seed: int,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Train `policy` on `groups`, close to `reference`, and write it to `out`.

    Each sample of an action counts: a candidate that was drawn twice weighs twice, in the mean of
    its group and in the loss. The latter is a mean over the samples of a step: of the clipped
    policy loss, a sum over the tokens of the action, and of `settings.beta` times the KL penalty,
    half the square of log π/π_{i-1} of the whole action (see `losses`). π_old of the clipped ratio
    is the policy as it first sees the group; how far that has moved on from the weights that
    sampled it is bounded by `Preferences.max_age` and not corrected.

    How `groups` is read, and what `publish` and `seed` are, is as in `fit_dpo`.

    Raises:
        NoSamplesError: too few groups came that were short enough.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(policy)
    remembering = RememberingTokenizer(tokenizer)  # states of an episode begin alike
    stream = Stream(
        groups,
        lambda group: _row(remembering, prompt, group, settings, seed),
        lambda row: sum(map(len, row.ids)),
        rows=settings.batch_groups,
        own_batches=own_batches(settings),
        reuse=settings.reuse,
    )
    stream.first()
    with common_arguments(settings, settings.max_steps, seed) as arguments:
        trainer = _GRPO(
            model=_model(policy),
            args=TrainingArguments(**arguments),
            train_dataset=stream,
            data_collator=_Collator(tokenizer.pad_token_id),
            processing_class=tokenizer,
        )
        trainer.stream, trainer.settings = stream, settings
        trainer.take_reference(_model(reference))
        return fit_online(
            trainer, out, settings, prompt, publish, seed=seed, log=log, progress=progress
        )


class _GRPO(OnlineTrainer):
    """Trainer over a stream of groups."""

    kind = "grpo"
    samples = "groups"
    last = ("q", "log_ratio", "clipped")
    stream: Stream[Group, _Row]
    settings: GRPOSettings
    reference: torch.nn.Module

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._before: list[dict[str, Tensor]] = []
        self._measured = torch.zeros(5)
        """Sums since the last line, which `_measure` adds up and `log` takes apart."""

    def take_reference(self, model: PreTrainedModel) -> None:
        """Hold `model`, as it is, as π_{i-1}."""
        model.requires_grad_(False)
        shard_reference(model, self.accelerator)
        if self.is_fsdp_enabled:
            self.reference = prepare_fsdp(model, self.accelerator)
        else:
            self.reference = self.accelerator.prepare_model(model, evaluation_mode=True)

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The number of samples."""
        return batch["counts"].sum()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of a step, with what π_old and π_{i-1} say of their tokens."""
        batches, weight = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step % self.settings.reuse == 0:
            self._before = [self._earlier_log_probs(batch) for batch in batches]
        return [batch | said for batch, said in zip(batches, self._before, strict=False)], weight

    @torch.no_grad()
    def _earlier_log_probs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What π_{i-1}, and π_old where rows are reused, say of the actions of a batch."""
        inputs = self._prepare_inputs(batch)
        said = {"reference": _action_log_probs(self.reference, inputs)}
        if self.settings.reuse > 1:
            said["old"] = _action_log_probs(self.model_wrapped, inputs)
        return said

    def total(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The clipped policy loss and the KL penalty of the samples."""
        mask, counts = inputs["actions"][:, 1:], inputs["counts"]
        log_probs = _action_log_probs(model, inputs)
        old = inputs.get("old", log_probs.detach())
        gains = clipped_policy_loss(log_probs, old, inputs["advantages"], mask, self.settings.clip)
        penalties = squared_log_ratio(log_probs, inputs["reference"], mask)
        self._measure(inputs, log_probs.detach(), old, mask)
        return (counts * (gains + self.settings.beta * penalties)).sum()

    def _measure(
        self, inputs: dict[str, Tensor], log_probs: Tensor, old: Tensor, mask: Tensor
    ) -> None:
        counts, change = inputs["counts"], (log_probs - old).exp() - 1
        sums = (
            (counts * inputs["q"]).sum(),
            (counts * ((log_probs - inputs["reference"]) * mask).sum(1)).sum(),
            counts.sum(),
            ((change.abs() > self.settings.clip) & mask).sum(),
            mask.sum(),
        )
        self._measured += torch.stack([value.float().cpu() for value in sums])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds means since the last line: Q and log π/π_{i-1} of a sample, tokens out of range."""
        sums = self.accelerator.reduce(self._measured.to(self.args.device), "sum")
        q, log_ratio, samples, clipped, tokens = sums.tolist()
        if samples:
            means = {"q": q / samples, "log_ratio": log_ratio / samples}
            logs |= {**means, "clipped": clipped / tokens}
        self._measured.zero_()
        super().log(logs, start_time)


class _Collator:
    """Pads the candidates of all groups on the right; `actions` marks the tokens of the actions."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, groups: Sequence[_Row]) -> dict[str, Tensor]:
        rows = [(ids, group.start) for group in groups for ids in group.ids]
        actions = [[False] * start + [True] * (len(ids) - start) for ids, start in rows]
        return {
            "input_ids": padded([ids for ids, _ in rows], self.pad_token_id),
            "attention_mask": padded([[1] * len(ids) for ids, _ in rows]),
            "actions": padded(actions, dtype=torch.bool),
            "advantages": torch.tensor([a for group in groups for a in group.advantages]),
            "counts": torch.tensor([c for group in groups for c in group.counts]),
            "q": torch.tensor([q for group in groups for q in group.q]),
        }


def _row(
    tokenizer: Tokenizer, prompt: PromptTemplate, group: Group, settings: GRPOSettings, seed: int
) -> _Row | None:
    numbers = Numbers.of_state(group.state, settings.renumbered, seed)
    actions = [numbers.action(candidate.action) for candidate in group.candidates]
    ids, answers = answer_rows(tokenizer, prompt, numbers.state(group.state), actions)
    if len(ids) + max(map(len, answers)) > settings.max_tokens:
        return None
    return _Row(
        ids=[ids + answer for answer in answers],
        start=len(ids),
        advantages=group.advantages,
        counts=[candidate.count for candidate in group.candidates],
        q=group.q,
    )


def _action_log_probs(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return token_log_probs(model, ids, mask, inputs["actions"]).float()


def _model(directory: Path) -> PreTrainedModel:
    model = load_policy(directory)
    add_fused_lm_head(model)
    return model
