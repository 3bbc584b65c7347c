"""Candidates sampled from the policy as it is while it is being fitted, scored by the PRM.

States of D go out as jobs, a few at a time; rollout workers sample candidates from the policy that
serves, the PRM scores them, and through the `preferences` stream comes back the best against the
worst, or all of them.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from agentprm.config import Preferences
from agentprm.protocol import Episode, Group, JobResult, Preference, PreferenceJob, State
from agentprm.queue import Offer, Queue
from services.trainer.rollouts.inbox import Inbox
from services.trainer.rollouts.records import job_id
from services.trainer.seeds import derive

S = TypeVar("S", Preference, Group)


def sample_states(episodes: Sequence[Episode], count: int, per_game: int, seed: int) -> list[State]:
    """At most `count` states of D, at most `per_game` of one game; see `sample_turns`."""
    return [episode.state(t) for episode, t in sample_turns(episodes, count, per_game, seed)]


def sample_turns(
    episodes: Sequence[Episode], count: int, per_game: int, seed: int
) -> list[tuple[Episode, int]]:
    """Turns drawn at random from games in random order, until there are `count`.

    Those of an episode follow one another: their states begin alike, and what the policy and the
    PRM compute for the first of them serves the others. States with one admissible command leave
    nothing to prefer and are left out, and so are those before an episode's start.
    """
    rng = random.Random(seed)
    by_game: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        played = range(episode.start, len(episode.turns))
        turns = (t for t in played if len(episode.turns[t].admissible) != 1)
        by_game[episode.game.id].extend((i, t) for t in turns)
    order = sorted(by_game)
    rng.shuffle(order)
    picked = [
        place
        for game in order
        for place in sorted(rng.sample(by_game[game], min(per_game, len(by_game[game]))))
    ]
    return [(episodes[i], t) for i, t in picked[:count]]


def candidate_jobs(
    plan: Preferences,
    states: Sequence[State],
    *,
    stage: str,
    prm_version: str,
    seed: int,
    policy_version: str | None = None,
    attempt: str = "",
    groups: bool = False,
) -> list[PreferenceJob]:
    """The jobs that ask about `states`; the same arguments give the same jobs.

    Without `policy_version` whatever serves then is sampled.
    """
    size = plan.states_per_job
    return [
        PreferenceJob(
            id=job_id(stage, k),
            attempt=attempt,
            states=list(states[start : start + size]),
            seed=derive(seed, "preferences", k),
            n=plan.candidates,
            sampling=plan.sampling,
            policy_version=policy_version,
            prm_version=prm_version,
            groups=groups,
            ties=plan.anchors > 0 and not groups,
            margin=plan.margin,
        )
        for k, start in enumerate(range(0, len(states), size))
    ]


class OnlineSource(ABC, Generic[S]):
    """An iterator over samples, lazily asked for; `updated` tells it of new weights."""

    groups: ClassVar[bool]
    """Whether its jobs ask for groups."""

    def __init__(
        self,
        queue: Queue,
        inbox: Inbox,
        plan: Preferences,
        states: Sequence[State],
        *,
        stage: str,
        attempt: str,
        policy_version: str,
        prm_version: str,
        seed: int,
    ) -> None:
        self._queue = queue
        self._inbox = inbox
        self._plan = plan
        self._updates = {policy_version: 0}
        self._waiting = candidate_jobs(
            plan,
            states,
            stage=f"{stage}-{attempt}",
            prm_version=prm_version,
            seed=seed,
            attempt=attempt,
            groups=self.groups,
        )
        self._waiting.reverse()
        self._under_way: dict[str, PreferenceJob] = {}
        """What was asked and not handed out yet, in the order in which it was asked."""
        self._answers: dict[str, JobResult] = {}
        """Those of them that came before an earlier one's: in the order in which workers answer,
        the same settings would make another fit each time."""
        self._stopped = False
        self.stale = 0
        """Samples dropped because the policy had moved on too far."""
        self.indifferent = 0
        """States that gave no sample: the candidates, or their Q, were too much alike."""
        self.used = 0
        """Samples that were handed out, without the anchors."""
        self.anchors = 0
        """Ties among preferences that were handed out."""
        self.wait_seconds = 0.0
        """Time spent waiting for samples."""

    def updated(self, version: str) -> None:
        """From now on the policy service samples from `version`."""
        self._updates[version] = len(self._updates)

    def stop(self) -> None:
        """Give no more samples, so that the fit ends."""
        self._stopped = True

    @abstractmethod
    def samples(self, result: JobResult) -> list[S]:
        """Those of a job."""

    def __iter__(self) -> Iterator[S]:
        """Samples until every state was asked about, or until `stop`.

        Raises:
            JobsFailed: a job failed again and again, or no worker answers.
            QueueError: Redis is gone for good.
        """
        self._inbox.expect()
        while not self._stopped and (self._waiting or self._under_way):
            self._refill()
            started = time.monotonic()
            results = self._inbox.receive("preferences", self._unanswered())
            self.wait_seconds += time.monotonic() - started
            for result in results:
                if result.job_id in self._under_way:
                    self._answers.setdefault(result.job_id, result)
            while answer := self._answers.pop(next(iter(self._under_way), ""), None):
                yield from self._fresh(answer)
            if results:
                self._inbox.listen()  # the samples may have been trained on for long
            lost = self._inbox.lost("preferences", self._unanswered())
            self._waiting += [self._under_way.pop(job_id) for job_id in lost]

    def _unanswered(self) -> list[str]:
        return [job_id for job_id in self._under_way if job_id not in self._answers]

    def _refill(self) -> None:
        while self._waiting and len(self._under_way) < self._plan.ahead and not self._stopped:
            job = self._waiting[-1]
            if self._queue.offer(job) is Offer.FULL:
                return
            self._under_way[job.id] = self._waiting.pop()

    def _fresh(self, result: JobResult) -> Iterator[S]:
        del self._under_way[result.job_id]
        self._refill()  # before the samples: the workers play while they are trained on
        self.indifferent += result.dropped
        for sample in self.samples(result):
            if self._stopped:
                return
            update = self._updates.get(sample.policy_version)
            if update is None or len(self._updates) - 1 - update > self._plan.max_age:
                self.stale += 1
                continue
            if isinstance(sample, Preference) and sample.tie:
                if self.anchors < self._plan.anchors * self.used:
                    self.anchors += 1
                    yield sample
                else:
                    self.indifferent += 1
                continue
            if sample.gap == 0 or sample.gap < self._plan.margin:
                self.indifferent += 1
                continue
            self.used += 1
            yield sample


class PreferenceSource(OnlineSource[Preference]):
    """Best against worst."""

    groups = False

    def samples(self, result: JobResult) -> list[Preference]:
        """The preferences of a job."""
        return result.preferences


class GroupSource(OnlineSource[Group]):
    """All candidates of a state."""

    groups = True

    def samples(self, result: JobResult) -> list[Group]:
        """The groups of a job."""
        return result.groups
