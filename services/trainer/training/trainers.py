"""Trainers whose loss is a mean over an optimizer step, and training with them on given batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer

from services.trainer.training.attention import attend_on_cpu
from services.trainer.training.batches import TokenBatches
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    processes,
    report,
    throughput,
)
from services.trainer.training.schedule import rate


class StepMeanTrainer(Trainer):
    """A Trainer whose loss is a mean over an optimizer step: all its batches, of all processes.

    A mean of the batches' means would depend on how the rows of the step are shared out. A subclass
    says what `weight` and `total` are, and may inherit from another trainer class as well; one with
    a `compute_loss` of its own needs no `total`.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.args.device.type == "cpu":
            attend_on_cpu(self.model)

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """What a batch, as it is collated, contributes to the denominator of the mean."""
        raise NotImplementedError

    def total(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The sum of a batch's losses."""
        raise NotImplementedError

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], *, num_items_in_batch: Tensor
    ) -> Tensor:
        """The batch's part of the mean; `num_items_in_batch` is the weight of the step."""
        return self.scaled(self.total(model, inputs), num_items_in_batch)

    def scaled(self, total: Tensor, weight: Tensor) -> Tensor:
        """A batch's sum of losses as its part of the mean over a step of that weight."""
        # Gradients, and the losses that are logged, are averaged over the processes.
        share: Tensor = total * self.args.world_size / weight
        return share

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of this process for a step, and the weight of the step."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = sum((self.weight(batch).float() for batch in batches), torch.tensor(0.0))
        weight: Tensor = self.accelerator.reduce(own.to(device), "sum")
        return batches, weight.clamp(min=torch.finfo().tiny)

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """The rate of each step, by `rate`."""
        factor = partial(rate, steps=num_training_steps, **self.args.lr_scheduler_kwargs)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def create_accelerator_and_postprocess(self) -> None:
        """Transformers' own, with what it leaves to accelerate's defaults.

        Under FSDP bf16 is for the matrices, not for sums and results, and gradients are shared out
        after every batch: else each GPU keeps those of the whole model until the last of a step.
        Under DDP they are not held twice, in the model and in the buckets that are sent.
        """
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        if plugin is not None and self.args.bf16:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True


class TokenBatchTrainer(StepMeanTrainer):
    """It goes once through given batches, which the processes share."""

    batches: TokenBatches
    accumulation: int

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The share of this process."""
        state = processes()
        share = self.batches.share(self.accumulation, state.num_processes, state.process_index)
        return DataLoader(self.train_dataset, batch_sampler=share, collate_fn=self.data_collator)


def train_through(
    batches: TokenBatches,
    trainer: TokenBatchTrainer,
    accumulation: int,
    log: LogMetrics,
    progress: ReportStep,
) -> Metrics:
    """Train on `batches`, `accumulation` of them a step; the mean loss, the steps and the speed."""
    trainer.batches, trainer.accumulation = batches, accumulation
    report(trainer, log, progress)
    result = trainer.train()
    return {
        "loss": mean_loss(trainer, result.training_loss),
        "steps": float(result.global_step),
        **throughput(batches.tokens, result.metrics["train_runtime"]),
    }


def mean_loss(trainer: Trainer, loss: float) -> float:
    """The `training_loss` of a training, over all processes, which all call this.

    Of the steps since its last logged line Trainer's has what this process computed, alone.
    """
    ours = torch.tensor(loss, device=trainer.args.device)
    return float(trainer.accelerator.reduce(ours, "mean").item())
