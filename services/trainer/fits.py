"""The fits of a run: what each is given, and where its reports go.

A fit runs in the trainer, or in processes of its own that share the work (see `launch`). There the
main process is the one with services, metrics and progress; the others only compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from agentprm.config import Config
from agentprm.prompts import Prompt
from agentprm.registry import Registry
from services.trainer.collect import Services
from services.trainer.prm import fit_prm
from services.trainer.progress import Progress
from services.trainer.records import Records
from services.trainer.relative import fit_relative_prm
from services.trainer.seeds import derive
from services.trainer.sft import fit_sft
from services.trainer.targets import monte_carlo_targets
from services.trainer.updates import UPDATES, Reports, Workplace
from services.trainer.updates.base import Log


class FitJob(BaseModel):
    """One fit of a run. What is trained on follows from the run's settings and records."""

    kind: Literal["sft", "prm", "policy"]
    iteration: int
    """i of the π_i or Q_i that is made."""
    member: int = 0
    """Of an ensemble of PRMs, which, from 1; 0 where there is but one."""
    base: Path
    """The checkpoint that is trained; that of the reference policy as well."""
    out: Path
    """The directory that is filled."""


class Fits:
    """Does the fits of one run."""

    def __init__(
        self,
        run: Path,
        config: Config,
        records: Records,
        prompt: Prompt,
        log: Log,
        progress: Progress,
        services: Services | None,
    ) -> None:
        self.config = config
        self.records = records
        self.prompt = prompt
        self.progress = progress
        self._log = log
        self._latest: Mapping[str, float] = {}
        registry = Registry(run / "checkpoints")
        at = Workplace(config, records, prompt, registry, services, progress, log, self._reports)
        self.update = UPDATES[config.update](at)

    def perform(self, job: FitJob) -> None:
        """Do one fit; its checkpoint is in `job.out` afterwards."""
        {"sft": self._sft, "prm": self._prm, "policy": self._policy}[job.kind](job)

    def _sft(self, job: FitJob) -> None:
        """π_0: supervised fine-tuning on the demonstrations that were won."""
        episodes = [e for e in self.records.episodes("demonstrations") if e.won]
        self.progress.start("pi_0", f"supervised fine-tuning on {len(episodes)} demonstrations")
        settings = self.config.sft.model_copy(update={"seed": derive(self.config.seed, "pi_0")})
        reports = self._reports("pi_0")
        summary = fit_sft(job.base, episodes, job.out, settings, self.prompt, **reports)
        self.progress.end(summary)

    def _prm(self, job: FitJob) -> None:
        """Q_i on the Monte-Carlo targets of π_i's rollouts (eq. 1), by soft BCE (eq. 2) or by
        Bradley–Terry on pairs of them (section 2.3)."""
        i = job.iteration
        stages = (f"pi_{i}-rollouts", f"pi_{i}-vine")
        episodes = [episode for stage in stages for episode in self.records.episodes(stage)]
        name = f"q_{i}.{job.member}" if job.member else f"q_{i}"
        self.progress.start(name, f"fitting the PRM on {len(episodes)} episodes")
        targets = monte_carlo_targets(episodes, self.config.gamma).values
        updates = {"seed": derive(self.config.seed, name), "gamma": self.config.gamma}
        settings = self.config.prm.model_copy(update=updates)
        reports = self._reports(name)
        fit = fit_relative_prm if settings.objective == "relative" else fit_prm
        summary = fit(job.base, episodes, targets, job.out, settings, self.prompt, **reports)
        self.progress.end(summary)

    def _policy(self, job: FitJob) -> None:
        """π_i from π_{i-1}, by the update that the settings name."""
        self.update.fit(job.iteration, job.base, job.out)

    def _reports(self, stage: str) -> Reports:
        """Where a fit reports to."""

        def log(line: Mapping[str, float]) -> None:
            values = {name: value for name, value in line.items() if name != "step"}
            self._log(stage, int(line["step"]), values)
            self._latest = {name: values[name] for name in ("loss",) if name in values}

        def progress(step: int, steps: int) -> None:
            self.progress.update(step, steps, self._latest)

        return {"log": log, "progress": progress}
