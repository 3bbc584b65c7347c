"""What every policy update is, and what it has at hand."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import structlog

from agentprm.config import Config
from agentprm.prompts import PromptTemplate
from agentprm.registry import STABLE, Registry
from services.trainer.progress import LogStage, Progress
from services.trainer.rollouts.collect import Collector, Services
from services.trainer.rollouts.records import Records
from services.trainer.training.fitting import LogMetrics, ReportStep

_log = structlog.get_logger()


class Reports(TypedDict):
    """The callbacks that every fit takes."""

    log: LogMetrics
    progress: ReportStep


@dataclass(frozen=True)
class Workplace:
    """The run that an update is of. A fit that processes share has services in the main one."""

    config: Config
    records: Records
    prompt: PromptTemplate
    registry: Registry
    services: Services | None
    progress: Progress
    log: LogStage
    reports: Callable[[str], Reports]
    """Those of a stage."""


class Update(ABC):
    """One way to make π_i of π_{i-1}."""

    def __init__(self, at: Workplace) -> None:
        self.at = at

    @abstractmethod
    def prepare(self, collector: Collector, i: int) -> None:
        """Have the services serve, and the workers sample, what the fit of π_i needs.

        What was recorded by an earlier run is not asked for again.

        Raises:
            JobsFailed, QueueError, ServiceError: as `Collector.collect`.
        """

    @abstractmethod
    def fit(self, i: int, base: Path, out: Path) -> None:
        """Train π_{i-1}, in `base`, and write π_i to `out`, the directory of a new checkpoint.

        All processes of a fit call this. Where there is nothing to learn from, π_i is π_{i-1}.

        Raises:
            CheckpointError: as `load_tokenizer`; or a checkpoint that the monitor needs is damaged.
            NothingToTrainOnError: nothing of what was selected can be read by the fit.
            NoGames: the monitor has too few to look at.
            JobsFailed, QueueError, ServiceError, WrongVersion: as `OnlineSource` and `Watch.look`;
                or the policy service does not load weights that are handed out.
        """

    def keep(self, i: int, base: Path, out: Path, why: str) -> None:
        """Copy π_{i-1}, in `base`, to `out` as π_i, in the main process, and log `why`."""
        _log.warning("the policy stays as it is", policy=f"pi_{i}", reason=why)
        if self.at.services:
            ignored = shutil.ignore_patterns(STABLE)
            shutil.copytree(base, out, dirs_exist_ok=True, ignore=ignored)
