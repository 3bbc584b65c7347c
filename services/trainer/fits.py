"""The fits of a run: what each is given, and where its reports go.

A fit runs in the trainer, or in processes of its own that share the work (see `launch`). There the
main process is the one with services, metrics and progress; the others only compute.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import structlog
from pydantic import BaseModel

from agentprm.config import Config
from agentprm.prompts import Prompt
from agentprm.protocol import State
from agentprm.registry import STABLE, Registry, number
from services.trainer.collect import Services
from services.trainer.dpo import NoPreferencesError, fit_dpo
from services.trainer.fitting import Save, ignore
from services.trainer.inbox import Inbox
from services.trainer.online import PreferenceSource, sample_states
from services.trainer.prm import fit_prm
from services.trainer.progress import Progress
from services.trainer.records import Records
from services.trainer.seeds import derive
from services.trainer.sft import fit_sft
from services.trainer.targets import monte_carlo_targets

log = structlog.get_logger()

_KEPT_ONLINE = 2
"""Sets of online weights kept: the one that serves, and the one before."""

Log = Callable[[str, int, Mapping[str, float]], None]
"""Takes the stage, its step, and what was measured."""


class FitJob(BaseModel):
    """One fit of a run. What is trained on follows from the run's settings and records."""

    kind: Literal["sft", "prm", "dpo"]
    iteration: int
    """i of the π_i or Q_i that is made."""
    base: Path
    """The checkpoint that is trained; that of the reference policy as well."""
    out: Path
    """The directory that is filled."""


class Reports(TypedDict):
    """The callbacks that every fit takes."""

    log: Callable[[Mapping[str, float]], None]
    progress: Callable[[int, int], None]


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
        self.registry = Registry(run / "checkpoints")
        self.progress = progress
        self.services = services
        self._log = log
        self._latest: Mapping[str, float] = {}

    def perform(self, job: FitJob) -> None:
        """Do one fit; its checkpoint is in `job.out` afterwards."""
        {"sft": self._sft, "prm": self._prm, "dpo": self._dpo}[job.kind](job)

    def _sft(self, job: FitJob) -> None:
        """π_0: supervised fine-tuning on the demonstrations that were won."""
        episodes = [e for e in self.records.episodes("demonstrations") if e.won]
        self.progress.start("pi_0", f"supervised fine-tuning on {len(episodes)} demonstrations")
        settings = self.config.sft.model_copy(update={"seed": derive(self.config.seed, "pi_0")})
        reports = self._reports("pi_0")
        summary = fit_sft(job.base, episodes, job.out, settings, self.prompt, **reports)
        self.progress.end(summary)

    def _prm(self, job: FitJob) -> None:
        """Q_i by soft BCE on the Monte-Carlo targets of π_i's rollouts (eq. 1 and 2)."""
        i = job.iteration
        stages = (f"pi_{i}-rollouts", f"pi_{i}-vine")
        episodes = [episode for stage in stages for episode in self.records.episodes(stage)]
        self.progress.start(f"q_{i}", f"fitting the PRM on {len(episodes)} episodes")
        targets = monte_carlo_targets(episodes, self.config.gamma).values
        updates = {"seed": derive(self.config.seed, f"q_{i}"), "gamma": self.config.gamma}
        settings = self.config.prm.model_copy(update=updates)
        reports = self._reports(f"q_{i}")
        summary = fit_prm(job.base, episodes, targets, job.out, settings, self.prompt, **reports)
        self.progress.end(summary)

    def _dpo(self, job: FitJob) -> None:
        """π_i: online DPO against Q_{i-1}, staying close to π_{i-1} (eq. 3).

        Where Q_{i-1} tells no candidates apart, π_i is π_{i-1}.
        """
        i = job.iteration
        online = None if self.services is None else self._online(self.services, i)
        settings = self.config.dpo.model_copy(update={"seed": derive(self.config.seed, f"pi_{i}")})
        try:
            summary = fit_dpo(
                job.base,
                job.base,
                online.source if online else (),
                job.out,
                settings,
                self.prompt,
                online.publish if online else ignore,
                **self._reports(f"pi_{i}"),
            )
        except NoPreferencesError as error:
            log.warning("the policy stays as it is", policy=f"pi_{i}", reason=str(error))
            summary = {}
            if online:
                ignored = shutil.ignore_patterns(STABLE)
                shutil.copytree(job.base, job.out, dirs_exist_ok=True, ignore=ignored)
        if online:
            counts = online.finish()
            self._log(f"pi_{i}", len(online.states), counts)
            self.progress.end({**summary, **counts})

    def _online(self, services: Services, i: int) -> _Online:
        plan = self.config.preferences
        stage = f"pi_{i}-preferences"
        rollouts = self.records.episodes(f"pi_{i - 1}-rollouts")
        states = sample_states(rollouts, plan.pairs, plan.per_game, derive(self.config.seed, stage))
        self.progress.start(f"pi_{i}", f"online DPO against Q_{i - 1} at {len(states)} states")
        source = PreferenceSource(
            services.queue,
            Inbox(services.queue, self.records),
            plan,
            states,
            stage=stage,
            attempt=uuid.uuid4().hex[:8],
            policy_version=f"policy/{i - 1}",
            prm_version=f"prm/{i - 1}",
            seed=derive(self.config.seed, stage, "sampling"),
        )
        return _Online(services, self.registry, i, states, source)

    def _reports(self, stage: str) -> Reports:
        """Where a fit reports to."""

        def log(line: Mapping[str, float]) -> None:
            values = {name: value for name, value in line.items() if name != "step"}
            self._log(stage, int(line["step"]), values)
            self._latest = {name: values[name] for name in ("loss",) if name in values}

        def progress(step: int, steps: int) -> None:
            self.progress.update(step, steps, self._latest)

        return {"log": log, "progress": progress}


@dataclass(frozen=True)
class _Online:
    """What the main process does beside the fit of π_i: preferences in, weights out."""

    services: Services
    registry: Registry
    i: int
    states: Sequence[State]
    source: PreferenceSource

    def publish(self, save: Save, _step: int) -> None:
        """Write weights of the fit and put them into the policy service."""
        versions = self.registry.versions("online")
        last = max((number(v)[1] for v in versions if number(v)[0] == self.i), default=0)
        version = f"online/{self.i}.{last + 1}"
        with self.registry.write(version) as out:
            save(out)
        self.services.policy.load(version)
        for old in [v for v in versions if v != version][: -_KEPT_ONLINE + 1]:
            self.registry.remove(old)
        self.source.updated(version)

    def finish(self) -> dict[str, float]:
        """Remove the weights that were handed out; what became of the preferences."""
        for version in self.registry.versions("online"):
            self.registry.remove(version)
        return {
            "preferences": self.source.used,
            "anchors": self.source.anchors,
            "stale": self.source.stale,
            "indifferent": self.source.indifferent,
            "waited_seconds": self.source.wait_seconds,
        }
