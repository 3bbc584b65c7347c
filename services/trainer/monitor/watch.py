"""The monitor of one policy update: when it looks, what it tells, and which weights it keeps."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from agentprm.config import Config, MonitorSettings
from agentprm.facts import METADATA
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode, Game, Sampling, Split
from agentprm.registry import STABLE, Registry
from agentprm.runs import DEMONSTRATIONS
from agentprm.trials import Trial, Trials
from services.trainer.monitor.readings import Monitor
from services.trainer.monitor.reference import Reference
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector, NoGames, Services
from services.trainer.rollouts.online import sample_states
from services.trainer.rollouts.records import Records
from services.trainer.seeds import derive

_ALL = 10**9

LogReadings = Callable[[int, Mapping[str, float]], None]
"""Takes the optimizer step, and what was read."""


class Arena:
    """Games that the published weights play, always the same from the same seeds."""

    def __init__(
        self,
        collector: Collector,
        games: Sequence[Game],
        sampling: Sampling,
        name: str,
        seed: int,
        attempt: str,
    ) -> None:
        self._collector = collector
        self._games = games
        self._sampling = sampling
        self._stage = f"{name}-{attempt}"
        self._seed = seed
        self._attempt = attempt

    def play(self, version: str, step: int) -> tuple[bool, ...]:
        """Which of the games the policy `version` wins.

        Raises:
            JobsFailed, QueueError, ServiceError: as `Collector.collect`.
        """
        stage = f"{self._stage}-{step}"
        jobs = self._collector.jobs(
            stage, self._games, policy=version, sampling=self._sampling, seed=self._seed
        )
        jobs = [job.model_copy(update={"attempt": self._attempt}) for job in jobs]
        what = f"{version} plays {len(self._games)} train games of no rollout"
        self._collector.collect(stage, jobs, what)
        return tuple(episode.won for episode in self._collector.records.episodes(stage))


class Watch:
    """Reads every published set of weights of one policy update, and lets it play."""

    def __init__(
        self, monitor: Monitor, arena: Arena | None, patience: int, log: LogReadings
    ) -> None:
        self._monitor = monitor
        self._arena = arena
        self._patience = patience
        self._log = log
        self._trials: Trials | None = None
        self.step = 0
        """The optimizer step of the weights that were looked at last."""

    @property
    def best(self) -> str | None:
        """The version that won the most games so far, if any are played."""
        return self._trials.best.version if self._trials else None

    @property
    def stopped(self) -> bool:
        """Whether success has fallen: the update is to end."""
        return self._trials is not None and self._trials.stopped

    def look(self, version: str, step: int) -> None:
        """Look at the weights of the optimizer step `step`, which serve as `version`.

        The first time those are π_{i-1}, at step 0.

        Raises:
            ServiceError: a service fails.
            WrongVersion: one answers with another version.
            JobsFailed, QueueError: as `Collector.collect`, of a trial.
        """
        self.step = step
        values = self._monitor.read(version)
        if self._arena is not None:
            trial = Trial(version, step, self._arena.play(version, step))
            values["success"] = trial.success
            if self._trials is None:
                self._trials = Trials(trial, self._patience)
            else:
                self._trials.add(trial)
        self._log(step, values)

    def keep_best(self, registry: Registry, out: Path) -> dict[str, float]:
        """Copy the best weights over those in `out`, and say which they are.

        Where no games are played none is the best: `out` stays as it is, and nothing is said.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        if self._trials is None:
            return {}
        best = self._trials.best
        ignored = shutil.ignore_patterns(STABLE, METADATA)
        shutil.copytree(registry.open(best.version), out, dirs_exist_ok=True, ignore=ignored)
        return {"kept_step": float(best.step), "kept_success": best.success}


def watch(
    services: Services,
    records: Records,
    config: Config,
    plan: MonitorSettings,
    prompt: PromptTemplate,
    held_out: Sequence[Episode],
    fitted: Set[str],
    base: Path,
    *,
    i: int,
    attempt: str,
    progress: Progress,
    log: LogReadings,
) -> Watch:
    """The watch over the update of π_{i-1}, in `base`, to π_i, with a first look at π_{i-1}.

    `held_out` are rollouts of π_{i-1} in games that Q_{i-1} was not fitted on, `fitted` the games
    that it was. `attempt` names this fit: a restarted one plays its games anew.

    Raises:
        NoGames: there is nothing held out, or are too few games for trials.
        CheckpointError: as `Reference`.
        JobsFailed, QueueError, ServiceError, WrongVersion: as `Watch.look`.
    """
    if not held_out:
        raise NoGames(
            f"monitor: no rollout of π_{i - 1} is in a game that Q_{i - 1} was not fitted on; "
            "raise prm.validation_fraction or rollouts.games"
        )
    name = f"pi_{i}-monitor"
    seed = derive(config.seed, name)
    each = math.ceil(plan.states / len(_games(held_out)))
    monitor = Monitor(
        services,
        Reference(base, prompt, config.preferences.sampling.decoding),
        sample_states(held_out, plan.states, each, seed),
        plan,
        config.preferences.sampling,
        prm_version=f"prm/{i - 1}",
        seed=seed,
    )
    arena = None
    if plan.games:
        collector = Collector(
            services,
            records,
            Progress(progress.console),
            seed=config.seed,
            batch=config.batch,
            max_steps=config.max_steps,
        )
        games = trial_games(collector, i, plan.games, fitted)
        arena = Arena(collector, games, config.evaluation.sampling, name, seed, attempt)
    result = Watch(monitor, arena, plan.patience, log)
    result.look(f"policy/{i - 1}", 0)
    return result


def trial_games(collector: Collector, i: int, count: int, fitted: Set[str]) -> list[Game]:
    """Train games of no rollout of π_0..π_{i-1}, nor `fitted`: neither Q_{i-1} nor D has seen them.

    Those of no demonstration come first, and of them the last in the order in which rollouts take
    games: later iterations reach them last.

    Raises:
        NoGames: the split has not so many.
        ServiceError: the environment does not answer.
    """
    order = collector.games(Split.TRAIN, _ALL, "rollouts", repeat=False)
    seen = fitted | _games(collector.records.rollouts(*range(i)))
    imitated = _games(collector.records.episodes(DEMONSTRATIONS))
    free = [game for game in reversed(order) if game.id not in seen]
    if len(free) < count:
        raise NoGames(
            f"monitor.games is {count}, and there are {len(free)} train games that neither "
            f"a rollout nor Q_{i - 1} has seen"
        )
    return sorted(free, key=lambda game: game.id in imitated)[:count]


def _games(episodes: Sequence[Episode]) -> set[str]:
    return {episode.game.id for episode in episodes}
