"""Expert and learner transitions (algorithm 2, stage 1): D+, D−, and next actions for both.

Nothing here reads a reward or whether a game was won.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from agentprm.protocol import Action, ActRequest, Episode, JobResult, NextAction, Sampling
from agentprm.runs import DEMONSTRATIONS
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.records import Records, job_id
from services.trainer.seeds import derive, shuffled

_STATES = 64
"""States of one request."""
_AT_ONCE = 4
"""Requests under way at once."""

NextActions = Mapping[str, Mapping[int, Action]]
"""a' by the id of an episode and the turn t of its state s_t."""


def draw_transitions(records: Records, i: int, seed: int) -> tuple[list[Episode], list[Episode]]:
    """The episodes of D+ and of D− for the fit of Q_i, with about as many transitions in both.

    D+ is of the demonstrations, D− of the rollouts of π_0, ..., π_i together. Of the larger set
    whole episodes are drawn until they have the transitions of the smaller; no more are asked
    about or trained on.
    """
    expert = records.episodes(DEMONSTRATIONS)
    learner = records.rollouts(*range(i + 1))
    wanted = min(_transitions(expert), _transitions(learner))
    return (
        list(_drawn(expert, wanted, derive(seed, f"q_{i}", "expert"))),
        list(_drawn(learner, wanted, derive(seed, f"q_{i}", "learner"))),
    )


def sample_next_actions(
    collector: Collector, i: int, episodes: Sequence[Episode], sampling: Sampling
) -> None:
    """Have π_i choose anew in every state that follows a transition; record what it chose.

    Raises:
        ServiceError: the policy does not answer.
        WrongVersion: it answers with another version.
    """
    stage, policy = _stage(i), f"policy/{i}"
    places = list(_turn_by_turn(episodes))
    finished = collector.records.finished(stage)
    jobs = {
        job_id(stage, k): places[start : start + _STATES]
        for k, start in enumerate(range(0, len(places), _STATES))
    }
    missing = {job: states for job, states in jobs.items() if job not in finished}
    if not missing:
        collector.progress.skip(stage)
        return

    def ask(job: str) -> JobResult:
        return _asked(collector, job, missing[job], policy, sampling)

    collector.serve(policy=policy)
    collector.progress.start(stage, f"{policy} chooses anew in {len(places)} states")
    done = len(places) - sum(map(len, missing.values()))
    waiting = iter(missing)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while some := list(itertools.islice(waiting, _AT_ONCE)):
            for result in threads.map(ask, some):
                collector.records.append(result)
                done += len(result.next_actions)
            collector.progress.update(done, len(places))
    collector.progress.end({"states": done})


def read_next_actions(records: Records, i: int) -> NextActions:
    """What π_i chose."""
    found: dict[str, dict[int, Action]] = defaultdict(dict)
    for result in records.results(_stage(i)):
        for chosen in result.next_actions:
            found[chosen.episode_id][chosen.turn] = chosen.action
    return found


def _stage(i: int) -> str:
    return f"pi_{i}-next-actions"


def _asked(
    collector: Collector,
    job: str,
    places: Sequence[tuple[Episode, int]],
    policy: str,
    sampling: Sampling,
) -> JobResult:
    started = time.monotonic()
    seed = derive(collector.seed, job)
    request = ActRequest(states=[e.state(t) for e, t in places], sampling=sampling, seed=seed)
    answer = collector.services.act(request, policy)
    chosen = [
        NextAction(
            episode_id=episode.id,
            turn=t,
            action=result.best.action,
            log_prob=result.best.log_prob,
            seed=seed,
            sampling=sampling,
            policy_version=policy,
            template_hash=answer.template_hash,
        )
        for (episode, t), result in zip(places, answer.results, strict=True)
    ]
    seconds = time.monotonic() - started
    return JobResult(job_id=job, worker="trainer", seconds=seconds, next_actions=chosen)


def _turn_by_turn(episodes: Sequence[Episode]) -> Iterator[tuple[Episode, int]]:
    """The states behind transitions, in the order in which playing some episodes at a time would
    come by them: the policy's prefix cache knows each but for its last turn."""
    for first in range(0, len(episodes), _STATES):
        some = episodes[first : first + _STATES]
        for t in range(1, max(len(each.turns) for each in some)):
            yield from ((each, t) for each in some if each.start < t < len(each.turns))


def _transitions(episodes: Sequence[Episode]) -> int:
    return sum(len(episode.turns) - episode.start for episode in episodes)


def _drawn(episodes: Sequence[Episode], wanted: int, seed: int) -> Iterator[Episode]:
    for episode in shuffled(episodes, seed):
        if wanted <= 0:
            return
        yield episode
        wanted -= len(episode.turns) - episode.start
