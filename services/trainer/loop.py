"""The loop of the paper (algorithms 1 and 2): π_0, then K times: roll out, fit Q, improve π.

Each stage is done when its output exists: its jobs are in the records, or its checkpoint is STABLE.
So resuming a run is walking through the stages again, whatever killed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agentprm.config import Algorithm, Config
from agentprm.ensembles import write_ensemble
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Split
from agentprm.registry import Registry
from agentprm.results import Row, write_results
from agentprm.runs import DEMONSTRATIONS, evaluation_stage, rollouts_stage, short_name
from services.trainer.base_model import base_model, require_layers, require_trainable
from services.trainer.fits.jobs import FitJob, FitKind, Fits, prm_version
from services.trainer.metrics import MetricsWriter
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector, NoGames, Services
from services.trainer.rollouts.demonstrations import demonstrate, require_won
from services.trainer.rollouts.evaluation import evaluate
from services.trainer.rollouts.exploration import (
    EXPLORER,
    EXPLORER_DEMONSTRATIONS,
    begin,
    rollout_jobs,
    success_by_way,
)
from services.trainer.rollouts.records import Records
from services.trainer.rollouts.transitions import draw_transitions, sample_next_actions
from services.trainer.rollouts.vine import sample_places, vine_jobs, vine_stage
from services.trainer.seeds import derive
from services.trainer.targets.reference import ROLLOUTS, VALUE, reference_jobs


class Loop:
    """One training run.

    Raises:
        CheckpointError: of a stage, a checkpoint that it begins with is damaged.
        JobsFailed, NoGames, QueueError, ServiceError: of a stage in which games are played, as
            `Collector.games` and `Collector.collect`.
        FitFailed, NothingToTrainOnError: of a stage that fits, as `Launcher.perform` and
            `Fits.perform`.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        services: Services,
        records: Records,
        prompt: PromptTemplate,
        metrics: MetricsWriter,
        progress: Progress,
        launch: Callable[[FitJob], None] | None = None,
    ) -> None:
        """`launch` does the fits, where they are not done here."""
        self.run = run
        self.config = config
        self.services = services
        self.metrics = metrics
        self.progress = progress
        self.registry = Registry(run / "checkpoints")
        self.records = records
        self._prompt = prompt
        fits = Fits(run, config, records, prompt, metrics.log, progress, services)
        self._fit = launch or fits.perform
        self._update = fits.update
        self.collector = Collector(
            services,
            records,
            progress,
            seed=config.seed,
            batch=config.batch,
            max_steps=config.max_steps,
        )

    def train(self) -> list[Row]:
        """Everything from demonstrations to the table, going on where an earlier run stopped.

        Raises:
            BaseModelError, DemonstrationsError: as `start`.
        """
        self.start()
        self.fit_explorer()
        self.fit_reference()
        rows = self._with_row([], 0, None)
        for i in range(1, self.config.iterations + 1):
            self.roll_out(i - 1)
            if self.config.has_prm:
                self.roll_out_vine(i - 1)
                self.fit_prm(i - 1)
                if i == 1:
                    rows = self._with_row(rows, 0, 0)
            self.improve(i)
            rows = self._with_row(rows, i, None)
            if self.config.has_prm:
                rows = self._with_row(rows, i, i - 1)
        return rows

    # --- stage 0: demonstrations and π_0 --------------------------------------------------------

    def start(self) -> None:
        """Up to π_0, once it is clear that the run can go on from there.

        Raises:
            BaseModelError, DemonstrationsError: as `try_model`, `demonstrate` and `imitate`.
        """
        self.try_model()
        self.try_games()
        self.demonstrate()
        self.imitate()

    def try_model(self) -> None:
        """Before anything is played: whether the fits will be able to read what was.

        A model that is to learn its words from the demonstrations is not there yet.

        Raises:
            BaseModelError: they will not.
        """
        if not self.registry.exists("policy/0") and not self._learns_words():
            base = self._base_model()
            require_trainable(base, self._prompt, self.config.algorithm)
            require_layers(base, self.config)

    def try_games(self) -> None:
        """Before anything is played: whether there will be something to evaluate on, and games
        for the monitor's trials, which are of no rollout.

        How many games there will be of no rollout is not known where rollouts begin in games that
        were won, nor where demonstrations are in the data of Q: `trial_games` sees to it then.

        Raises:
            NoGames: there will not.
            ServiceError: the environment does not answer.
        """
        self.collector.games(self.config.evaluation.split, 1, "evaluation")
        plan, rollouts = self.config.monitor, self.config.rollouts
        if plan is None or not self.config.has_prm or rollouts.exploration.reset is not None:
            return
        train = self.services.env.games(Split.TRAIN).total
        played = self.config.iterations * rollouts.games
        if plan.games and played + plan.games > train:
            raise NoGames(
                f"monitor.games is {plan.games}, iterations × rollouts.games {played}, and there "
                f"are {train} train games: trials are of games of no rollout"
            )

    def demonstrate(self) -> None:
        """The expert plays train games, or has played them.

        Raises:
            DemonstrationsError, CheckpointError: as
                `services.trainer.rollouts.demonstrations.demonstrate`.
        """
        demonstrate(self.collector, self.registry, self.config.demonstrations)

    def imitate(self) -> None:
        """π_0 from the demonstrations.

        Raises:
            DemonstrationsError: none was won; InversePRM alone imitates the others too.
            BaseModelError: as `base_model`.
        """
        if self._skip("policy/0"):
            return
        if self.config.algorithm is not Algorithm.INVERSE_PRM:
            require_won(self.records)
        self._make("policy/0", "sft", 0, self._base_model())

    def fit_explorer(self) -> None:
        """The explorer, where there is to be one: π_0 learns to read where things are."""
        if self.config.rollouts.exploration.posterior is None:
            return
        stage = EXPLORER_DEMONSTRATIONS
        plan = self.config.demonstrations
        games = self.collector.games(Split.TRAIN, plan.games, DEMONSTRATIONS)
        jobs = self.collector.jobs(stage, games, actor="expert", privileged=True)
        self.collector.collect(stage, jobs, f"the expert plays {len(games)} games, all told")
        if self._skip(EXPLORER, "explorer"):
            return
        self._make(EXPLORER, "explorer", 0, self.registry.open("policy/0"))

    def fit_reference(self) -> None:
        """V^μ from rollouts of the reference policy, once in a run that shapes its targets.

        Raises:
            CheckpointError: as `reference_jobs`.
        """
        plan = self.config.shaping
        if plan.alpha == 0:
            return
        sampling = self.config.rollouts.sampling
        jobs = reference_jobs(self.collector, self.registry, plan, sampling)
        self.collector.collect(
            ROLLOUTS, jobs, f"the reference plays {plan.games} train games {plan.per_game} times"
        )
        if self._skip(VALUE, "v_reference"):
            return
        self._make(VALUE, "value", 0, self.registry.open("policy/0"))

    # --- stage 1: rollouts and targets; stage 2: Q ----------------------------------------------

    def roll_out(self, i: int, *, labelled: bool = False) -> None:
        """π_i plays train games, several times each; with `labelled` the expert comments.

        See `rollouts.exploration` for how the rollouts begin.

        Raises:
            NoGames: as `begin`.
        """
        plan = self.config.rollouts
        stage = rollouts_stage(i)
        games = self.collector.games(Split.TRAIN, plan.games, "rollouts", skip=i * plan.games)
        games = [game for game in games for _ in range(plan.per_game)]
        beginnings = begin(self.collector, plan.exploration, i, games, plan.sampling)
        jobs = rollout_jobs(
            self.collector, stage, beginnings, f"policy/{i}", plan.sampling, labelled=labelled
        )
        self.collector.collect(
            stage, jobs, f"π_{i} plays {plan.games} train games {plan.per_game} times"
        )
        won = success_by_way(beginnings, self.records.episodes(stage))
        self.metrics.log(stage, i, won)

    def roll_out_vine(self, i: int) -> None:
        """Vine rollouts: π_i goes on from states of its rollouts, several times an action.

        InversePRM, which reads no outcome, has no use for them.

        Raises:
            WrongVersion: π_i answers as another version.
        """
        plan = self.config.rollouts
        if plan.vine is None or self.config.algorithm is Algorithm.INVERSE_PRM:
            return
        stage = vine_stage(i)
        rollouts = self.records.rollouts(i)
        seed = derive(self.config.seed, stage)
        places = sample_places(rollouts, plan.vine.states, seed, before=plan.vine.before)
        jobs = vine_jobs(self.collector, stage, places, plan.vine, f"policy/{i}", plan.sampling)
        self.collector.collect(stage, jobs, f"π_{i} goes on from {len(places)} states")

    def fit_prm(self, i: int) -> None:
        """Q_i from π_i's rollouts; by algorithm 2 from the demonstrations too."""
        if self._skip(prm_version(i)):
            return
        if self.config.algorithm is Algorithm.INVERSE_PRM:
            self.sample_next_actions(i)
        if self.config.prm.members == 1:
            self._fit_member(i, 0)
            return
        members = range(1, self.config.prm.members + 1)
        for k in members:
            if not self._skip(prm_version(i, k)):
                self._fit_member(i, k)
        write_ensemble(self.registry, prm_version(i), [prm_version(i, k) for k in members])

    def _fit_member(self, i: int, member: int) -> None:
        inverse = self.config.algorithm is Algorithm.INVERSE_PRM
        kind: FitKind = "inverse-prm" if inverse else "prm"
        warm = self.config.prm.warm_start and i > 0
        base = self.registry.open(prm_version(i - 1, member) if warm else f"policy/{i}")
        self._make(prm_version(i, member), kind, i, base, member)

    def sample_next_actions(self, i: int) -> None:
        """Next actions from π_i behind the expert's and the learner's transitions.

        Raises:
            WrongVersion: π_i answers as another version.
        """
        expert, learner = draw_transitions(self.records, i, self.config.seed)
        sample_next_actions(self.collector, i, [*expert, *learner], self.config.rollouts.sampling)

    # --- stage 3: π_i ---------------------------------------------------------------------------

    def improve(self, i: int) -> None:
        """π_i from π_{i-1}, by Q_{i-1} (see `services.trainer.updates`)."""
        if self._skip(f"policy/{i}"):
            return
        self._update.prepare(self.collector, i)
        self._make(f"policy/{i}", "policy", i, self.registry.open(f"policy/{i - 1}"))

    # --- helpers --------------------------------------------------------------------------------

    def _make(self, version: str, kind: FitKind, i: int, base: Path, member: int = 0) -> None:
        """Fit what begins as `base`, into the registry as `version`."""
        with self.registry.write(version) as out:
            self._fit(FitJob(kind=kind, iteration=i, member=member, base=base, out=out))

    def _with_row(self, rows: Sequence[Row], i: int, prm: int | None) -> list[Row]:
        """The table so far, which is there to be looked at, with a row more.

        It is π_i's alone, or that of the best of N of its actions by Q_prm.
        """
        longer = [*rows, self._evaluate(i, prm)]
        write_results(self.run, longer)
        return longer

    def _evaluate(self, i: int, prm: int | None) -> Row:
        row = evaluate(
            self.collector,
            self.config.evaluation.under(self.config.algorithm, self.config.shaping.alpha),
            policy=f"policy/{i}",
            prm=None if prm is None else f"prm/{prm}",
        )
        stage = evaluation_stage(row.policy, row.prm)
        self.metrics.log(stage, i, {"success": row.success, "actions": row.actions})
        return row

    def _base_model(self) -> Path:
        texts = self._demonstrated() if self._learns_words() else None
        return base_model(self.run, self.config, texts)

    def _learns_words(self) -> bool:
        return self.config.model == "tiny" and not self.collector.plays_alfworld()

    def _demonstrated(self) -> Iterator[str]:
        """What a policy reads and writes in the demonstrations."""
        demonstrations = self.records.episodes(DEMONSTRATIONS)
        for episode in (each for each in demonstrations if each.turns):
            last = len(episode.turns) - 1
            messages = self._prompt.messages(episode.state(last))
            yield from (message.content for message in messages if message.role != "system")
            yield self._prompt.action_text(episode.turns[last].action)

    def _skip(self, version: str, stage: str | None = None) -> bool:
        """Whether the checkpoint was made before; its stage is called as it is, or as given."""
        if not self.registry.exists(version):
            return False
        self.progress.skip(stage or short_name(version))
        return True
