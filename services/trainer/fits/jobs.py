"""The fits of a run: what each is given, and where its reports go.

A fit runs in the trainer, or in processes of its own that share the work (see `launch`). There the
main process is the one with services, metrics and progress; the others only compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

from pydantic import BaseModel

from agentprm.config import Algorithm, Config, SFTSettings
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode
from agentprm.registry import Registry
from agentprm.runs import DEMONSTRATIONS, rollouts_stage, short_name
from services.trainer.fits.dagger import fit_dagger
from services.trainer.fits.inverse import fit_inverse_prm
from services.trainer.fits.prm import fit_prm
from services.trainer.fits.relative import fit_relative_prm
from services.trainer.fits.sft import fit_sft
from services.trainer.metrics import log_line
from services.trainer.progress import LogStage, Progress
from services.trainer.rollouts.collect import Services
from services.trainer.rollouts.exploration import EXPLORER_DEMONSTRATIONS
from services.trainer.rollouts.online import sample_turns
from services.trainer.rollouts.records import Records
from services.trainer.rollouts.transitions import draw_transitions, read_next_actions
from services.trainer.rollouts.vine import vine_stage
from services.trainer.seeds import derive
from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.targets.reference import ROLLOUTS, VALUE, predict_values, reference_values
from services.trainer.targets.shaping import advantages, shaped
from services.trainer.tiny.hindsight import hindsight_hints
from services.trainer.training.fitting import release_memory
from services.trainer.updates import UPDATES, Reports, Workplace

FitKind = Literal["sft", "dagger", "explorer", "prm", "inverse-prm", "value", "policy"]
"""What is fitted."""


class FitJob(BaseModel):
    """One fit of a run. What is trained on follows from the run's settings and records."""

    kind: FitKind
    iteration: int
    """i of the π_i or Q_i that is made."""
    member: int = 0
    """Of an ensemble of PRMs, which, from 1; 0 where there is but one."""
    base: Path
    """The checkpoint that is trained; that of the reference policy as well."""
    out: Path
    """The directory that is filled."""


class PRMConditions(TypedDict):
    """What the run decides of the fit of a PRM; see `fit_prm`."""

    seed: int
    split_seed: int
    gamma: float


class Fits:
    """Does the fits of one run."""

    def __init__(
        self,
        run: Path,
        config: Config,
        records: Records,
        prompt: PromptTemplate,
        log: LogStage,
        progress: Progress,
        services: Services | None,
    ) -> None:
        self.config = config
        self.records = records
        self.prompt = prompt
        self.progress = progress
        self._log = log
        self._latest: Mapping[str, float] = {}
        self.registry = Registry(run / "checkpoints")
        at = Workplace(
            config, records, prompt, self.registry, services, progress, log, self._reports
        )
        self.update = UPDATES[config.update](at)

    def perform(self, job: FitJob) -> None:
        """Do one fit; its checkpoint is in `job.out` afterwards.

        Raises:
            NothingToTrainOnError: nothing that was played can be read by the fit.
            ValueError: the model's attention is not full, which algorithm 2 needs.
            CheckpointError: the model has no tokenizer that can be trained with, or V^μ is damaged.
            JobsFailed, NoGames, QueueError, ServiceError, WrongVersion: as `Update.fit`, of a π_i.
        """
        fits = {
            "sft": self._sft,
            "dagger": self._dagger,
            "explorer": self._explorer,
            "prm": self._prm,
            "inverse-prm": self._inverse_prm,
            "value": self._value,
            "policy": self._policy,
        }
        fits[job.kind](job)
        release_memory()

    # --- imitation ------------------------------------------------------------------------------

    def _sft(self, job: FitJob) -> None:
        """π_0: supervised fine-tuning on the demonstrations that were won.

        InversePRM takes all of them: the expert is to be believed, and may not tell outcomes. A
        later π_i goes on with as many episodes as the PRM of an iteration would be fitted on,
        rounded up to whole passes.
        """
        stage = f"pi_{job.iteration}"
        believed = self.config.algorithm is Algorithm.INVERSE_PRM
        episodes = [e for e in self.records.episodes(DEMONSTRATIONS) if e.won or believed]
        self.progress.start(stage, f"supervised fine-tuning on {len(episodes)} demonstrations")
        steered = self.config.rollouts.exploration.steered
        seed = derive(self.config.seed, "hindsight")
        hints = hindsight_hints(episodes, steered.hindsight, seed) if steered else None
        settings = self.config.sft
        if job.iteration > 0 and episodes:
            passes = math.ceil(self.config.prm.epochs * self.config.rollouts.size / len(episodes))
            settings = settings.model_copy(update={"epochs": passes})
        self._imitate(stage, job, episodes, hints, settings)

    def _explorer(self, job: FitJob) -> None:
        """The explorer: fine-tuning on demonstrations in whose prompts stands where things are."""
        episodes = [e for e in self.records.episodes(EXPLORER_DEMONSTRATIONS) if e.won]
        self.progress.start("explorer", f"fine-tuning on {len(episodes)} privileged demonstrations")
        hints = [e.provenance.hint for e in episodes]
        self._imitate("explorer", job, episodes, hints, self.config.sft)

    def _imitate(
        self,
        stage: str,
        job: FitJob,
        episodes: list[Episode],
        hints: list[str] | None,
        settings: SFTSettings,
    ) -> None:
        summary = fit_sft(
            job.base,
            episodes,
            job.out,
            settings,
            self.prompt,
            seed=derive(self.config.seed, stage),
            hints=hints,
            **self._reports(stage),
        )
        self.progress.end(summary)

    def _dagger(self, job: FitJob) -> None:
        """π_i of DAgger: the demonstrations, and labels from the rollouts of π_0 to π_{i-1}."""
        i, plan = job.iteration, self.config.preferences
        demonstrations = [e for e in self.records.episodes(DEMONSTRATIONS) if e.won]
        labelled = []
        for k in range(i):
            seed = derive(self.config.seed, rollouts_stage(k), "labels")
            rollouts = self.records.rollouts(k)
            labelled += sample_turns(rollouts, plan.pairs, plan.per_game, seed)
        what = f"{len(demonstrations)} demonstrations and {len(labelled)} labelled states"
        self.progress.start(f"pi_{i}", f"supervised fine-tuning on {what}")
        summary = fit_dagger(
            job.base,
            demonstrations,
            labelled,
            job.out,
            self.config.sft,
            self.prompt,
            seed=derive(self.config.seed, f"pi_{i}"),
            **self._reports(f"pi_{i}"),
        )
        self.progress.end(summary)

    # --- Q and V ------------------------------------------------------------------------------

    def _prm(self, job: FitJob) -> None:
        """Q_i on the Monte-Carlo targets of π_i's rollouts (eq. 1), by soft BCE (eq. 2) or by
        Bradley–Terry on pairs of them (section 2.3)."""
        i = job.iteration
        episodes = [*self.records.rollouts(i), *self.records.episodes(vine_stage(i))]
        name = _member(job)
        self.progress.start(name, f"fitting the PRM on {len(episodes)} episodes")
        targets = self._targets(episodes)
        settings = self.config.prm
        fit = fit_relative_prm if settings.objective == "relative" else fit_prm
        summary = fit(
            job.base,
            episodes,
            targets,
            job.out,
            settings,
            self.prompt,
            alpha=self.config.shaping.alpha,
            **self._conditions(name),
            **self._reports(name),
        )
        self.progress.end(summary)

    def _conditions(self, name: str) -> PRMConditions:
        """The PRMs of a run, and the members of an ensemble, differ in their seed alone.

        The split is the run's: a Q_i that begins as Q_{i-1} was not fitted on what it holds out,
        unless the games are so few that one has to be held out of a set that has none.
        """
        return {
            "seed": derive(self.config.seed, name),
            "split_seed": derive(self.config.seed, "split"),
            "gamma": self.config.gamma,
        }

    def _targets(self, episodes: list[Episode]) -> list[list[float]]:
        """Q̂ of eq. 1, with what a reference policy says mixed in where eq. 13 asks for it."""
        gamma, alpha = self.config.gamma, self.config.shaping.alpha
        q = monte_carlo_targets(episodes, gamma)
        if alpha == 0:
            return q
        model = self.registry.open(VALUE)
        values = predict_values(model, episodes, self.config.prm, self.prompt)
        return shaped(q, advantages(episodes, values, gamma), alpha)

    def _inverse_prm(self, job: FitJob) -> None:
        """Q_i from what tells the demonstrations from π_0's to π_i's rollouts (algorithm 2)."""
        i = job.iteration
        expert, learner = draw_transitions(self.records, i, self.config.seed)
        what = f"telling {len(expert)} episodes of the expert from {len(learner)} of the learner"
        name = _member(job)
        self.progress.start(name, what)
        summary = fit_inverse_prm(
            job.base,
            expert,
            learner,
            read_next_actions(self.records, i),
            job.out,
            self.config.prm,
            self.prompt,
            self.config.max_steps,
            **self._conditions(name),
            **self._reports(name),
        )
        self.progress.end(summary)

    def _value(self, job: FitJob) -> None:
        """V^μ by soft BCE on the Monte-Carlo values of the reference policy's rollouts."""
        episodes = self.records.episodes(ROLLOUTS)
        self.progress.start("v_reference", f"fitting V^μ on {len(episodes)} episodes")
        summary = fit_prm(
            job.base,
            episodes,
            reference_values(episodes, self.config.gamma),
            job.out,
            self.config.prm,
            self.prompt,
            of="state",
            **self._conditions(VALUE),
            **self._reports("v_reference"),
        )
        self.progress.end(summary)

    # --- π_i -----------------------------------------------------------------------------------

    def _policy(self, job: FitJob) -> None:
        """π_i from π_{i-1}, by the update that the settings name."""
        self.update.fit(job.iteration, job.base, job.out)

    def _reports(self, stage: str) -> Reports:
        """Where a fit reports to."""

        def log(line: Mapping[str, float]) -> None:
            log_line(self._log, stage, line)
            self._latest = {name: line[name] for name in ("loss",) if name in line}

        def progress(step: int, steps: int) -> None:
            self.progress.update(step, steps, self._latest)

        return {"log": log, "progress": progress}


def prm_version(i: int, member: int = 0) -> str:
    """`prm/1`, or `prm/1.2` where it is one of several."""
    return f"prm/{i}.{member}" if member else f"prm/{i}"


def _member(job: FitJob) -> str:
    """The stage of the fit of a PRM: `q_0`, or `q_0.2` where it is one of several."""
    return short_name(prm_version(job.iteration, job.member))
