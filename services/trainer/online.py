"""Preferences for online DPO, sampled from the policy as it is while it is being fitted.

States of D go out as jobs, a few at a time; rollout workers sample candidates from the policy that
serves, the PRM ranks them, and best against worst comes back through the `preferences` stream.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from agentprm.config import Preferences
from agentprm.protocol import Episode, JobResult, Preference, PreferenceJob, State
from agentprm.queue import Queue
from services.trainer.inbox import Inbox
from services.trainer.seeds import derive


def sample_states(episodes: Sequence[Episode], count: int, per_game: int, seed: int) -> list[State]:
    """At most `count` states of D in random order, at most `per_game` of one game.

    States with one admissible command leave nothing to prefer and are left out.
    """
    rng = random.Random(seed)
    by_game: dict[str, list[tuple[Episode, int]]] = defaultdict(list)
    for episode in episodes:
        turns = (t for t, turn in enumerate(episode.turns) if len(turn.admissible) != 1)
        by_game[episode.game.id].extend((episode, t) for t in turns)
    picked = [
        place
        for _, places in sorted(by_game.items())
        for place in rng.sample(places, min(per_game, len(places)))
    ]
    rng.shuffle(picked)
    return [episode.state(t) for episode, t in picked[:count]]


class PreferenceSource:
    """An iterator over preferences, lazily asked for; `updated` tells it of new weights."""

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
        self._attempt = attempt
        size = plan.states_per_job
        self._waiting = [
            PreferenceJob(
                id=f"{stage}-{attempt}-{k:04d}",
                attempt=attempt,
                states=list(states[start : start + size]),
                seed=derive(seed, "preferences", k),
                n=plan.candidates,
                sampling=plan.sampling,
                prm_version=prm_version,
                ties=plan.anchors > 0,
                margin=plan.margin,
            )
            for k, start in enumerate(range(0, len(states), size))
        ]
        self._waiting.reverse()
        self._out: set[str] = set()
        self.stale = 0
        """Preferences dropped because the policy had moved on too far."""
        self.indifferent = 0
        """States that gave no preference: the candidates, or their Q, were too much alike."""
        self.used = 0
        """Pairs that were handed out."""
        self.anchors = 0
        """Ties that were handed out."""
        self.wait_seconds = 0.0
        """Time spent waiting for preferences."""

    def updated(self, version: str) -> None:
        """From now on the policy service samples from `version`."""
        self._updates[version] = len(self._updates)

    def __iter__(self) -> Iterator[Preference]:
        """Preferences until every state was asked about.

        Raises:
            JobsFailed: a job failed again and again, or no worker answers.
        """
        self._queue.purge_preferences(keep_attempt=self._attempt)
        self._inbox.expect()
        while self._waiting or self._out:
            while self._waiting and len(self._out) < self._plan.ahead:
                job = self._waiting.pop()
                self._queue.publish(job)
                self._out.add(job.id)
            started = time.monotonic()
            results = self._inbox.receive("preferences", self._out)
            self.wait_seconds += time.monotonic() - started
            for result in results:
                yield from self._fresh(result)

    def _fresh(self, result: JobResult) -> Iterator[Preference]:
        if result.job_id not in self._out:
            return
        self._out.discard(result.job_id)
        self.indifferent += result.dropped
        for preference in result.preferences:
            update = self._updates.get(preference.policy_version)
            if update is None or len(self._updates) - 1 - update > self._plan.max_age:
                self.stale += 1
                continue
            if preference.chosen == preference.rejected:
                if self.anchors < self._plan.anchors * self.used:
                    self.anchors += 1
                    yield preference
                else:
                    self.indifferent += 1
                continue
            if preference.chosen_q - preference.rejected_q < self._plan.margin:
                self.indifferent += 1
                continue
            self.used += 1
            yield preference
