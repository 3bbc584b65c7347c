"""What all fits share: arguments of transformers' Trainer, and its reports."""

from __future__ import annotations

import datetime
import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from agentprm.config import FitSettings
from agentprm.models.devices import computes_bf16, pick_device
from agentprm.models.surplus_tokens import without_surplus
from services.trainer.training.batches import TokenBatches
from services.trainer.training.padding import padding_token

Metrics = dict[str, float]
LogMetrics = Callable[[Metrics], None]
"""Takes a line of measurements, with the optimizer step under `step`."""
ReportStep = Callable[[int, int], None]
"""Takes the optimizer steps done and the steps in all."""

_PATIENCE = datetime.timedelta(hours=8)
"""How long a process waits for another one, which may itself wait six hours for preferences."""


def ignore(*_: object) -> None:
    """The report that nobody reads."""


def quiet_transformers() -> None:
    """Keep transformers' warnings and progress bars off the screen.

    It warns of a PRM's new head, which is no surprise here.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def common_arguments(settings: FitSettings, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Keyword arguments for any `TrainingArguments`, for a fit of `steps` optimizer steps.

    `seed` is that of dropout. Trainer wants a directory of its own: it gets one that is gone
    afterwards. Nothing is saved there, and nothing is reported but through `report`.
    """
    torch.set_num_threads(settings.threads)
    quiet_transformers()
    cuda = torch.cuda.is_available()
    with TemporaryDirectory(prefix="agentprm-fit-") as scratch, warnings.catch_warnings():
        # TRL still asks for it by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield {
            "output_dir": scratch,
            "max_steps": steps,
            "seed": seed,
            "use_cpu": not cuda,
            "ddp_find_unused_parameters": False,
            "bf16": autocasts(settings),
            "learning_rate": settings.learning_rate,
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "lr_scheduler_kwargs": {
                "warmup": math.ceil(settings.warmup_fraction * steps),
                "decay": round(settings.decay_fraction * steps),
            },
            "gradient_accumulation_steps": own_batches(settings),
            "activation_checkpointing": settings.checkpointing,
            "logging_steps": settings.log_every,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,
            "log_level_replica": "error",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": cuda,
        }


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; where it names no token for padding it gets one.

    Raises:
        CheckpointError: it knows more tokens than the model, or has none that could be padding.
    """
    text = AutoConfig.from_pretrained(directory).get_text_config()
    tokenizer: PreTrainedTokenizerBase = without_surplus(
        directory, AutoTokenizer.from_pretrained(directory), text.vocab_size
    )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = padding_token(directory, tokenizer)
    return tokenizer


def processes() -> PartialState:
    """The processes of this fit: one, or those that `accelerate launch` or `torchrun` started."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def own_batches(settings: FitSettings) -> int:
    """Batches that one process computes for an optimizer step."""
    world: int = processes().num_processes
    return math.ceil(settings.accumulation / world)


def autocasts(settings: FitSettings) -> bool:
    """Whether matrices are computed in bf16."""
    automatic = settings.precision == "auto" and computes_bf16(pick_device("auto"))
    return settings.precision == "bf16" or automatic


def throughput(tokens: int, seconds: float) -> Metrics:
    """The measurements of speed that every fit returns."""
    return {
        "tokens": float(tokens),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }


def steps_of(batches: TokenBatches, settings: FitSettings) -> int:
    """Optimizer steps in which all processes together go through `batches` once."""
    return math.ceil(len(batches) / settings.accumulation)


def release_memory() -> None:
    """Give back what a fit that has ended held: weights, gradients and optimizer state.

    A trainer, its callbacks and its model refer to one another, so they do not go by themselves,
    and the policy service may compute on the same GPU.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def report(trainer: Trainer, log: LogMetrics, progress: ReportStep) -> None:
    """Give what `trainer` measures to `log` and `progress` and not to the standard output."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(log, progress))


class _Report(TrainerCallback):
    """Passes on what Trainer measures, on the main process."""

    def __init__(self, log: LogMetrics, progress: ReportStep) -> None:
        self._log = log
        self._progress = progress
        self._started = time.perf_counter()

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """The clock starts."""
        self._started = time.perf_counter()

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """One optimizer step is done."""
        if state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps)

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Trainer has measured something."""
        if state.is_world_process_zero and logs and "loss" in logs:
            numbers = {k: float(v) for k, v in logs.items() if k != "epoch"}
            seconds = time.perf_counter() - self._started
            self._log({"step": float(state.global_step), "seconds": seconds, **numbers})
