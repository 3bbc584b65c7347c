"""The loop of the paper (algorithm 1): demonstrations, π_0, then K times: roll out, fit Q, improve.

Each stage is done when its output exists: its jobs are in the records, or its checkpoint is STABLE.
So resuming a run is walking through the stages again, whatever killed it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import structlog
from huggingface_hub import snapshot_download

from agentprm.config import Config
from agentprm.prompts import Prompt
from agentprm.protocol import Split
from agentprm.registry import Registry, number
from agentprm.results import Row, write_results
from services.trainer.collect import Collector, Services
from services.trainer.dpo import NoPreferencesError, fit_dpo
from services.trainer.evaluation import evaluate
from services.trainer.metrics import Metrics
from services.trainer.online import PreferenceSource, sample_states
from services.trainer.prm import fit_prm
from services.trainer.progress import Progress
from services.trainer.records import Records
from services.trainer.seeds import derive
from services.trainer.sft import fit_sft
from services.trainer.targets import monte_carlo_targets
from services.trainer.tiny import create_tiny
from services.trainer.vine import sample_places, vine_jobs


class Reports(TypedDict):
    """The callbacks that every fit takes."""

    log: Callable[[Mapping[str, float]], None]
    progress: Callable[[int, int], None]


log = structlog.get_logger()

_KEPT_ONLINE = 2
"""Sets of online weights kept: the one that serves, and the one before."""


class Loop:
    """One training run."""

    def __init__(
        self,
        run: Path,
        config: Config,
        services: Services,
        records: Records,
        prompt: Prompt,
        metrics: Metrics,
        progress: Progress,
    ) -> None:
        self.run = run
        self.config = config
        self.services = services
        self.prompt = prompt
        self.metrics = metrics
        self.progress = progress
        self.registry = Registry(run / "checkpoints")
        self.records = records
        self._latest: Mapping[str, float] = {}
        self.collector = Collector(
            services,
            records,
            progress,
            seed=config.seed,
            batch=config.batch,
            max_steps=config.max_steps,
        )

    def train(self) -> list[Row]:
        """Everything from demonstrations to the table, going on where an earlier run stopped."""
        self.demonstrate()
        self.imitate()
        rows = [self._evaluate(0, None)]
        for i in range(1, self.config.iterations + 1):
            self.roll_out(i - 1)
            self.branch(i - 1)
            self.fit_prm(i - 1)
            if i == 1:
                rows.append(self._evaluate(0, 0))
            self.improve(i)
            rows.append(self._evaluate(i, None))
            rows.append(self._evaluate(i, i - 1))
            write_results(self.run, rows)
        return rows

    # --- stage 0: demonstrations and π_0 --------------------------------------------------------

    def demonstrate(self) -> None:
        """The expert plays train games."""
        plan = self.config.demonstrations
        games = self.collector.games(Split.TRAIN, plan.games, "demonstrations")
        jobs = self.collector.jobs("demonstrations", games, actor="expert")
        self.collector.collect("demonstrations", jobs, f"the expert plays {len(games)} train games")

    def imitate(self) -> None:
        """π_0: supervised fine-tuning on the demonstrations that were won."""
        if self._skip("policy/0", "pi_0"):
            return
        episodes = [e for e in self.records.episodes("demonstrations") if e.won]
        self.progress.start("pi_0", f"supervised fine-tuning on {len(episodes)} demonstrations")
        base = self._base_model()
        settings = self.config.sft.model_copy(update={"seed": derive(self.config.seed, "pi_0")})
        with self.registry.write("policy/0") as out:
            summary = fit_sft(base, episodes, out, settings, self.prompt, **self._reports("pi_0"))
        self.progress.end(summary)

    # --- stage 1: rollouts and targets; stage 2: Q ----------------------------------------------

    def roll_out(self, i: int) -> None:
        """π_i plays train games, several times each."""
        plan = self.config.rollouts
        stage = f"pi_{i}-rollouts"
        games = self.collector.games(Split.TRAIN, plan.games, "rollouts", skip=i * plan.games)
        games = [game for game in games for _ in range(plan.per_game)]
        jobs = self.collector.jobs(stage, games, policy=f"policy/{i}", sampling=plan.sampling)
        self.collector.collect(
            stage, jobs, f"π_{i} plays {plan.games} train games {plan.per_game} times"
        )

    def branch(self, i: int) -> None:
        """Vine rollouts: π_i goes on from states of its rollouts, several times an action."""
        plan = self.config.rollouts
        if plan.vine is None:
            return
        stage = f"pi_{i}-vine"
        rollouts = self.records.episodes(f"pi_{i}-rollouts")
        places = sample_places(rollouts, plan.vine.states, derive(self.config.seed, stage))
        jobs = vine_jobs(self.collector, stage, places, plan.vine, f"policy/{i}", plan.sampling)
        self.collector.collect(stage, jobs, f"π_{i} goes on from {len(places)} states")

    def fit_prm(self, i: int) -> None:
        """Q_i by soft BCE on the Monte-Carlo targets of π_i's rollouts (eq. 1 and 2)."""
        if self._skip(f"prm/{i}", f"q_{i}"):
            return
        stages = (f"pi_{i}-rollouts", f"pi_{i}-vine")
        episodes = [episode for stage in stages for episode in self.records.episodes(stage)]
        self.progress.start(f"q_{i}", f"fitting the PRM on {len(episodes)} episodes")
        targets = monte_carlo_targets(episodes, self.config.gamma)
        updates = {"seed": derive(self.config.seed, f"q_{i}"), "gamma": self.config.gamma}
        settings = self.config.prm.model_copy(update=updates)
        with self.registry.write(f"prm/{i}") as out:
            base = self.registry.open(f"policy/{i}")
            summary = fit_prm(
                base,
                episodes,
                targets.values,
                out,
                settings,
                self.prompt,
                **self._reports(f"q_{i}"),
            )
        self.progress.end(summary)

    # --- stage 3: π_i ---------------------------------------------------------------------------

    def improve(self, i: int) -> None:
        """π_i: online DPO against Q_{i-1}, staying close to π_{i-1} (eq. 3).

        Where Q_{i-1} tells no candidates apart, π_i is π_{i-1}.
        """
        if self._skip(f"policy/{i}", f"pi_{i}"):
            return
        stage = f"pi_{i}-preferences"
        plan = self.config.preferences
        self.collector.serve(policy=f"policy/{i - 1}", prm=f"prm/{i - 1}")
        rollouts = self.records.episodes(f"pi_{i - 1}-rollouts")
        states = sample_states(rollouts, plan.pairs, plan.per_game, derive(self.config.seed, stage))
        self.progress.start(f"pi_{i}", f"online DPO against Q_{i - 1} at {len(states)} states")
        source = PreferenceSource(
            self.services.queue,
            self.collector.inbox,
            plan,
            states,
            stage=stage,
            attempt=uuid.uuid4().hex[:8],
            policy_version=f"policy/{i - 1}",
            prm_version=f"prm/{i - 1}",
            seed=derive(self.config.seed, stage, "sampling"),
        )
        reference = self.registry.open(f"policy/{i - 1}")

        def publish(save: Callable[[Path], None], _step: int) -> None:
            source.updated(self._publish_online(i, save))

        settings = self.config.dpo.model_copy(update={"seed": derive(self.config.seed, f"pi_{i}")})
        try:
            with self.registry.write(f"policy/{i}") as out:
                summary = fit_dpo(
                    reference,
                    reference,
                    source,
                    out,
                    settings,
                    self.prompt,
                    publish,
                    **self._reports(f"pi_{i}"),
                )
        except NoPreferencesError as error:
            log.warning("the policy stays as it is", policy=f"pi_{i}", reason=str(error))
            self.registry.adopt(reference, f"policy/{i}")
            summary = {}
        for version in self.registry.versions("online"):
            self.registry.remove(version)
        counts = {
            "preferences": source.used,
            "stale": source.stale,
            "indifferent": source.indifferent,
            "waited_seconds": source.wait_seconds,
        }
        self.metrics.log(f"pi_{i}", len(states), counts)
        self.progress.end({**summary, **counts})

    def _publish_online(self, i: int, save: Callable[[Path], None]) -> str:
        """Write weights of the fit of π_i and put them into the policy service; their version."""
        versions = self.registry.versions("online")
        last = max((number(v)[1] for v in versions if number(v)[0] == i), default=0)
        version = f"online/{i}.{last + 1}"
        with self.registry.write(version) as out:
            save(out)
        self.services.policy.load(version)
        for old in [v for v in versions if v != version][: -_KEPT_ONLINE + 1]:
            self.registry.remove(old)
        return version

    # --- helpers --------------------------------------------------------------------------------

    def _evaluate(self, i: int, prm: int | None) -> Row:
        """π_i alone, or the best of N of its actions by Q_prm."""
        row = evaluate(
            self.collector,
            self.config.evaluation,
            policy=f"policy/{i}",
            prm=None if prm is None else f"prm/{prm}",
        )
        stage = f"eval-{row.policy}" if prm is None else f"eval-{row.policy}-{row.prm}"
        self.metrics.log(stage, i, {"success": row.success, "actions": row.actions})
        return row

    def _base_model(self) -> Path:
        """The directory of the model that is trained: made from scratch, or fetched by its name."""
        if self.config.model == "tiny":
            directory = self.run / "base"
            if not (directory / "config.json").exists():
                create_tiny(directory, derive(self.config.seed, "model"))
            return directory
        local = Path(self.config.model)
        return local if local.is_dir() else Path(snapshot_download(self.config.model))

    def _skip(self, version: str, stage: str) -> bool:
        if not self.registry.exists(version):
            return False
        self.progress.skip(stage)
        return True

    def _reports(self, stage: str) -> Reports:
        """Where a fit reports to."""

        def log(line: Mapping[str, float]) -> None:
            values = {name: value for name, value in line.items() if name != "step"}
            self.metrics.log(stage, int(line["step"]), values)
            self._latest = {name: values[name] for name in ("loss",) if name in values}

        def progress(step: int, steps: int) -> None:
            self.progress.update(step, steps, self._latest)

        return {"log": log, "progress": progress}
