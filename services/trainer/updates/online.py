"""Updates on samples of the policy as it is being fitted: online DPO, and GRPO."""

from __future__ import annotations

import shutil
import uuid
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from agentprm.config import OnlineSettings
from agentprm.protocol import State
from agentprm.registry import Registry, number
from services.trainer.fits.dpo import fit_dpo
from services.trainer.fits.grpo import fit_grpo
from services.trainer.monitor import Watch, fitted_games, held_out_games, watch
from services.trainer.rollouts.collect import Collector, Services
from services.trainer.rollouts.inbox import Inbox
from services.trainer.rollouts.online import (
    GroupSource,
    OnlineSource,
    PreferenceSource,
    sample_states,
)
from services.trainer.seeds import derive
from services.trainer.training.fitting import Metrics, ignore
from services.trainer.training.saving import Save
from services.trainer.training.streaming import NoSamplesError
from services.trainer.updates.base import Update

_KEPT_ONLINE = 2
"""Sets of online weights kept while they pass: the one that serves, and the one before."""


class OnlineUpdate(Update):
    """Samples come in while the policy is fitted, and its weights go out to sample the next."""

    title: ClassVar[str]
    samples: ClassVar[str]
    source: ClassVar[type[OnlineSource[Any]]]

    @abstractmethod
    def learner(self) -> tuple[Callable[..., Metrics], OnlineSettings]:
        """What fits π_i on the samples, called as `fit_dpo` is, and its settings."""

    def prepare(self, collector: Collector, i: int) -> None:
        """π_{i-1} and Q_{i-1} serve."""
        collector.serve(policy=f"policy/{i - 1}", prm=f"prm/{i - 1}")

    def fit(self, i: int, base: Path, out: Path) -> None:
        """π_i by Q_{i-1}, staying close to π_{i-1} (eq. 3)."""
        online = None if self.at.services is None else self._online(self.at.services, i, base)
        learn, settings = self.learner()
        try:
            summary = learn(
                base,
                base,
                online.source if online else (),
                out,
                settings,
                self.at.prompt,
                online.publish if online else ignore,
                seed=derive(self.at.config.seed, f"pi_{i}"),
                **self.at.reports(f"pi_{i}"),
            )
        except NoSamplesError as error:
            summary = {}
            self.keep(i, base, out, str(error))
        if online:
            counts = online.finish(out, int(summary.get("steps", 0)))
            counts = {self.samples: float(online.source.used), **counts}
            self.at.log(f"pi_{i}", len(online.states), counts)
            self.at.progress.end({**summary, **counts})

    def _online(self, services: Services, i: int, base: Path) -> _Online:
        config = self.at.config
        plan = config.preferences.under(config.algorithm, config.shaping.alpha)
        stage = f"pi_{i}-{self.samples}"
        attempt = uuid.uuid4().hex[:8]
        services.queue.purge(keep_attempt=attempt)  # else the workers do an earlier one's first
        rollouts = self.at.records.rollouts(i - 1)
        unseen = held_out_games(self.at.registry, f"prm/{i - 1}") if config.monitor else set()
        seen = [episode for episode in rollouts if episode.game.id not in unseen]
        states = sample_states(seen, plan.pairs, plan.per_game, derive(config.seed, stage))
        what = f"{self.title} against Q_{i - 1} at {len(states)} states"
        self.at.progress.start(f"pi_{i}", what)
        source = self.source(
            services.queue,
            Inbox(services.queue, self.at.records),
            plan,
            states,
            stage=stage,
            attempt=attempt,
            policy_version=f"policy/{i - 1}",
            prm_version=f"prm/{i - 1}",
            seed=derive(config.seed, stage, "sampling"),
        )
        watched = None
        if config.monitor is not None:
            watched = watch(
                services,
                self.at.records,
                config,
                config.monitor,
                self.at.prompt,
                [episode for episode in rollouts if episode.game.id in unseen],
                fitted_games(self.at.registry, f"prm/{i - 1}"),
                base,
                i=i,
                attempt=attempt,
                progress=self.at.progress,
                log=partial(self._seen, f"pi_{i}"),
            )
        every = self.learner()[1].keep_every
        online = _Online(services, self.at.registry, i, states, source, every, watched)
        online.drop_killed()
        return online

    def _seen(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """What the monitor has read."""
        self.at.log(stage, step, values)
        self.at.progress.note(f"monitor at step {step}", values)


class OnlineDPO(OnlineUpdate):
    """Online DPO: of the candidates in a state the best against the worst."""

    title = "online DPO"
    samples = "preferences"
    source = PreferenceSource

    def learner(self) -> tuple[Callable[..., Metrics], OnlineSettings]:
        """See `fit_dpo`."""
        return fit_dpo, self.at.config.dpo


class GRPO(OnlineUpdate):
    """Policy gradient: each candidate against the mean of those in its state."""

    title = "GRPO"
    samples = "groups"
    source = GroupSource

    def learner(self) -> tuple[Callable[..., Metrics], OnlineSettings]:
        """See `fit_grpo`."""
        return fit_grpo, self.at.config.grpo


@dataclass(frozen=True)
class _Online:
    """What the main process does beside the fit of π_i: samples in, weights out."""

    services: Services
    registry: Registry
    i: int
    states: Sequence[State]
    source: OnlineSource[Any]
    keep_every: int
    watch: Watch | None

    def drop_killed(self) -> None:
        """Remove the weights of an attempt at this fit that was killed."""
        for version in self._versions():
            self.registry.remove(version)

    def publish(self, save: Save, step: int) -> None:
        """Write weights of the fit and put them into the policy service."""
        version = f"online/{self.i}.{step}"
        with self.registry.write(version) as out:
            save(out, rounded=self.watch is None)  # else it may become π_i, which is trained on
        self.services.policy.load(version)
        best = self.watch.best if self.watch else None
        for old in [v for v in self._passing() if v != best][:-_KEPT_ONLINE]:
            self.registry.remove(old)
        self.source.updated(version)
        if self.watch:
            self.watch.look(version, step)
            if self.watch.stopped:
                self.source.stop()

    def finish(self, out: Path, steps: int) -> dict[str, float]:
        """The fit has ended after `steps`, with its weights in `out`; what became of all.

        The monitor sees weights that were not published yet, and may put better ones into `out`.
        The weights that were handed out and are not to stay are removed.
        """
        kept = {}
        if self.watch:
            if steps > self.watch.step and not self.watch.stopped:
                self.publish(partial(_copy, out), steps)
            kept = self.watch.keep_best(self.registry, out)
        for version in self._passing():
            self.registry.remove(version)
        return {
            "anchors": self.source.anchors,
            "stale": self.source.stale,
            "indifferent": self.source.indifferent,
            "waited_seconds": self.source.wait_seconds,
            **kept,
        }

    def _versions(self) -> list[str]:
        return [v for v in self.registry.versions("online") if number(v)[0] == self.i]

    def _passing(self) -> list[str]:
        """Those of `_versions` that are not to stay."""
        every = self.keep_every
        return [v for v in self._versions() if not every or number(v)[1] % every]


def _copy(directory: Path, target: Path, *, rounded: bool = False) -> None:
    del rounded  # these are looked at, and π_i may be one of them
    shutil.copytree(directory, target, dirs_exist_ok=True)
