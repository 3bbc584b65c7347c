"""Fits of a policy on a stream: its weights go out meanwhile, and are written at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from agentprm.config import OnlineSettings
from agentprm.prompts import PromptTemplate
from services.trainer.training.canaries import policy_canary
from services.trainer.training.fitting import LogMetrics, Metrics, ReportStep, report
from services.trainer.training.saving import save_fit
from services.trainer.training.streaming import Publish, Publisher, Stream, train_on
from services.trainer.training.trainers import StepMeanTrainer


class OnlineTrainer(StepMeanTrainer):
    """Trainer over a stream of samples."""

    kind: ClassVar[str]
    """What `agentprm.json` calls the fit."""
    samples: ClassVar[str]
    """What measurements call what streams in."""
    last: ClassVar[tuple[str, ...]]
    """What is reported of the last logged line that has it."""
    stream: Stream[Any, Any]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the stream."""
        return self.stream.loader(self.data_collator)


def fit_online(
    trainer: OnlineTrainer,
    out: Path,
    settings: OnlineSettings,
    prompt: PromptTemplate,
    publish: Publish,
    *,
    seed: int,
    log: LogMetrics,
    progress: ReportStep,
) -> Metrics:
    """Train the policy, hand out its weights by `publish`, and write it to `out`.

    Raises:
        NoSamplesError: as `train_on`.
    """
    canary = policy_canary(prompt)
    trainer.add_callback(Publisher(trainer, publish, settings.publish_every, canary))
    report(trainer, log, progress)
    metrics = train_on(trainer.stream, trainer, trainer.samples, trainer.last)
    facts = {
        "kind": trainer.kind,
        "template_hash": prompt.hash,
        "settings": settings.model_dump(),
        "seed": seed,
        "metrics": metrics,
    }
    save_fit(trainer, trainer.processing_class, out, facts, canary)
    return metrics
