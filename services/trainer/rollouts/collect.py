"""Jobs out, results in: how the trainer has games played by the rollout workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentprm.client import EnvClient, PolicyClient, PRMClient
from agentprm.environment import ALFWORLD
from agentprm.protocol import (
    ActRequest,
    ActResponse,
    ChoiceRule,
    Game,
    Lookahead,
    PreferenceJob,
    RolloutJob,
    Sampling,
    ScoreRequest,
    ScoreResponse,
    Split,
    Start,
)
from agentprm.queue import Offer, Queue, Results
from services.trainer.progress import Progress
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.inbox import Inbox
from services.trainer.rollouts.records import Records, job_id
from services.trainer.seeds import MAX_SEED, derive, shuffled


class NoGames(Exception):
    """There is none to play, or too few. Says of which split, or what for."""


class WrongVersion(Exception):
    """A service answers by other weights than those it was told to serve."""


@dataclass(frozen=True)
class Services:
    """What the trainer talks to."""

    env: EnvClient
    policy: Fleet[PolicyClient]
    prm: Fleet[PRMClient]
    queue: Queue

    def act(self, request: ActRequest, policy: str, prm: str | None = None) -> ActResponse:
        """Actions of `policy`, which has to be what serves; those that are scored, by `prm`.

        Raises:
            ServiceError: the policy does not answer.
            WrongVersion: another version answered.
        """
        answer = self.policy.next.act(request)
        _require("the policy", answer.policy_version, policy)
        _require("the PRM", answer.prm_version, prm)
        return answer

    def score(self, request: ScoreRequest, prm: str) -> ScoreResponse:
        """Scores of `prm`, which has to be what serves.

        Raises:
            ServiceError: the PRM does not answer.
            WrongVersion: another version answered.
        """
        answer = self.prm.next.score(request)
        _require("the PRM", answer.prm_version, prm)
        return answer


def _require(service: str, answered: str | None, told: str | None) -> None:
    if answered != told:
        raise WrongVersion(
            f"{service} answered with {answered}, not {told}: another run uses it, or it was told "
            "to serve something else"
        )


class Collector:
    """Has jobs played and their results recorded, each once."""

    def __init__(
        self,
        services: Services,
        records: Records,
        progress: Progress,
        *,
        seed: int,
        batch: int,
        max_steps: int,
    ) -> None:
        self.services = services
        self.records = records
        self.inbox = Inbox(services.queue, records)
        self.progress = progress
        self.seed = seed
        self.batch = batch
        self.max_steps = max_steps
        self._loaded: set[str] = set()

    def games(
        self, split: Split, count: int, purpose: str, *, skip: int = 0, repeat: bool = True
    ) -> list[Game]:
        """`count` games of a split after `skip`, in this run's order for this purpose.

        At its end the split begins again; without `repeat` the games end there.

        Raises:
            NoGames: the split is empty.
            ServiceError: the environment does not answer.
        """
        games = self._split(split)
        if not games:
            raise NoGames(f"the environment has no games in the split {split}")
        order = shuffled(games, derive(self.seed, "games", purpose))
        if not repeat:
            return order[skip : skip + count]
        return [order[(skip + k) % len(order)] for k in range(count)]

    def plays_alfworld(self) -> bool:
        """Whether the environment is ALFWorld, and none of the user's own.

        Raises:
            ServiceError: it does not answer.
        """
        return self.services.env.health().details.get("environment", ALFWORLD) == ALFWORLD

    def _split(self, split: Split) -> list[Game]:
        page = self.services.env.games(split)
        games = page.games
        while page.games and len(games) < page.total:
            page = self.services.env.games(split, offset=len(games))
            games += page.games
        return games

    def jobs(
        self,
        stage: str,
        games: Sequence[Game],
        *,
        starts: Sequence[Start] | None = None,
        hints: Sequence[str] | None = None,
        privileged: bool = False,
        actor: Literal["policy", "expert", "chat"] = "policy",
        policy: str | None = None,
        prm: str | None = None,
        sampling: Sampling | None = None,
        best_of: int = 1,
        beta: float = 0.0,
        choice: ChoiceRule = ChoiceRule.PRM,
        lookahead: Lookahead | None = None,
        labelled: bool = False,
        seed: int | None = None,
    ) -> list[RolloutJob]:
        """The jobs of a stage; the same arguments give the same jobs, ids and seeds included.

        `starts[k]` and `hints[k]` are of `games[k]`; the rest is as in `RolloutJob`.
        """
        base = derive(self.seed, stage) if seed is None else seed
        return [
            RolloutJob(
                id=job_id(stage, k),
                games=[game.id for game in games[start : start + self.batch]],
                starts=starts and list(starts[start : start + self.batch]),
                hints=hints and list(hints[start : start + self.batch]),
                privileged=privileged,
                seed=(base + start) % MAX_SEED,
                actor=actor,
                policy_version=policy,
                prm_version=prm,
                sampling=sampling or Sampling(),
                best_of=best_of,
                beta=beta,
                choice=choice,
                lookahead=lookahead,
                labelled=labelled,
                max_steps=self.max_steps,
            )
            for k, start in enumerate(range(0, len(games), self.batch))
        ]

    def collect(
        self, stage: str, jobs: Sequence[RolloutJob] | Sequence[PreferenceJob], what: str
    ) -> None:
        """Have every job played that is not in the records yet, all of one policy and PRM.

        Raises:
            JobsFailed: a job failed again and again, or no worker answers.
            QueueError: Redis is gone for good.
            ServiceError: as `serve`.
        """
        finished = self.records.finished(stage)
        missing = [job for job in jobs if job.id not in finished]
        if not missing:
            self.progress.skip(stage)
            return
        first = missing[0]
        if not isinstance(first, RolloutJob) or first.actor == "policy":
            self.serve(policy=first.policy_version, prm=first.prm_version)
        self.progress.start(stage, what)
        total = sum(job.size for job in jobs)
        before = total - sum(job.size for job in missing)
        rollouts = isinstance(first, RolloutJob)
        stream: Results = "episodes" if rollouts else "preferences"
        played = won = 0
        waiting = {job.id: job for job in missing}
        unpublished = list(reversed(missing))
        self.inbox.expect()
        while waiting:
            while unpublished and self.services.queue.offer(unpublished[-1]) != Offer.FULL:
                unpublished.pop()
            for result in self.inbox.receive(stream, waiting):
                if job := waiting.pop(result.job_id, None):
                    played += job.size
                    won += sum(episode.won for episode in result.episodes)
            published = waiting.keys() - {job.id for job in unpublished}
            unpublished += [waiting[job_id] for job_id in self.inbox.lost(stream, published)]
            values = {"won": f"{won}/{played}"} if rollouts else {}
            self.progress.update(before + played, total, values)
        self.progress.end({"episodes" if rollouts else "states": before + played, **values})

    def serve(self, policy: str | None = None, prm: str | None = None) -> None:
        """Make the services serve these versions.

        The first version of each is loaded in any case: what is served under its name may be
        that of another run.

        Raises:
            ServiceError: as `Fleet.load`.
        """
        self._serve("policy", self.services.policy, policy)
        self._serve("prm", self.services.prm, prm)

    def _serve(self, name: str, fleet: Fleet[Any], version: str | None) -> None:
        if version is None or (name in self._loaded and fleet.version == version):
            return
        fleet.load(version)
        self._loaded.add(name)
