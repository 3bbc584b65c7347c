"""Vine rollouts: where to branch off, which actions to try there, and the jobs that do it.

A continuation begins with the state and the action that it is to tell about, so its return is one
more visit of that (s, a), and `targets.monte_carlo` takes the mean over all of them.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from agentprm.config import Vine
from agentprm.protocol import (
    MAX_CANDIDATES,
    MAX_STEPS,
    Action,
    ActRequest,
    ActResult,
    Episode,
    RolloutJob,
    Sampling,
    Start,
    Turn,
)
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.records import job_id
from services.trainer.seeds import derive
from services.trainer.targets.monte_carlo import keys

_SAMPLES = 4
"""Samples drawn from the policy for each action that is to be tried: many of them are alike."""


def vine_stage(i: int) -> str:
    """The stage in which π_i goes on from states of its rollouts."""
    return f"pi_{i}-vine"


@dataclass(frozen=True)
class Place:
    """State s_t of an episode."""

    episode: Episode
    t: int

    @property
    def recorded(self) -> Action:
        """What the episode did there."""
        return self.episode.turns[self.t].action

    def start(self, action: Action | None = None) -> Start:
        """A rollout that begins there, with `action` where it is given."""
        turns = self.episode.turns[: self.t]
        bare = tuple(turn.model_copy(update={"admissible": ()}) for turn in turns)
        return Start(turns=bare, action=action)


def reachable(episode: Episode) -> range:
    """The turns that the episode played in states that a prefix of its commands reaches again:
    those up to the first command that was not admissible."""
    played = range(episode.start, len(episode.turns))
    ends = (t + 1 for t in played if not _possible(episode.turns[t]))
    return range(episode.start, next(ends, len(episode.turns)))


def _possible(turn: Turn) -> bool:
    """Where the environment lists no commands, any is."""
    return not turn.admissible or turn.action.command in turn.admissible


def sample_places(
    episodes: Sequence[Episode], count: int, seed: int, *, before: int = MAX_STEPS
) -> list[Place]:
    """At most `count` distinct states before turn `before`, each as likely as any other.

    Whether a state is drawn depends on its name and the seed, not on how the episode went on from
    there: drawing turns of an episode would prefer those of short, won episodes, and the return
    that was recorded would be biased. Left out are states with one admissible command, which
    leave no choice, and those behind a command that was not admissible, which no prefix reaches.
    """
    places: dict[bytes, Place] = {}
    for episode in episodes:
        states = [state for state, _ in keys(episode)]
        for t in reachable(episode):
            if t < before and len(episode.turns[t].admissible) != 1:
                places.setdefault(states[t], Place(episode, t))
    drawn = heapq.nsmallest(count, places, key=lambda state: derive(seed, state.hex()))
    return [places[state] for state in drawn]


def actions_to_try(recorded: Action, sampled: ActResult, count: int) -> list[Action]:
    """At most `count` actions, no command twice: the recorded one, then the sampled in order."""
    actions = {recorded.command: recorded}
    for candidate in sampled.candidates:
        actions.setdefault(candidate.action.command, candidate.action)
    return list(actions.values())[:count]


def random_actions(place: Place, tried: Sequence[Action], count: int, seed: int) -> list[Action]:
    """At most `count` actions beside those `tried`, with the reason of the rollout.

    Each is drawn evenly from the first words of the admissible commands, then from the commands
    with that word: there are many places to go to, and few things to take.
    """
    rng = random.Random(seed)
    known = {action.command for action in tried}
    by_verb: dict[str, list[str]] = defaultdict(list)
    for command in place.episode.turns[place.t].admissible:
        if command not in known:
            by_verb[command.partition(" ")[0]].append(command)
    drawn: list[Action] = []
    while by_verb and len(drawn) < count:
        verb = rng.choice(sorted(by_verb))
        command = by_verb[verb].pop(rng.randrange(len(by_verb[verb])))
        if not by_verb[verb]:
            del by_verb[verb]
        drawn.append(Action(reason=place.recorded.reason, command=command))
    return drawn


def vine_jobs(
    collector: Collector,
    stage: str,
    places: Sequence[Place],
    plan: Vine,
    policy: str,
    sampling: Sampling,
) -> list[RolloutJob]:
    """The jobs of the stage that are not recorded yet, their actions sampled from `policy`.

    A job has all continuations of one state, or of as many as make a batch. Where no action is to
    be tried, as random ones are not where the environment lists no commands, there is none.

    Raises:
        ServiceError: the policy does not answer.
        WrongVersion: it answers with another version.
    """
    size = collector.batch // plan.size
    groups = [places[first : first + size] for first in range(0, len(places), size)]
    finished = collector.records.finished(stage)
    missing = {k: group for k, group in enumerate(groups) if job_id(stage, k) not in finished}
    if missing:
        collector.serve(policy=policy)
    jobs = []
    for k, group in missing.items():
        seed = derive(collector.seed, stage, k, "actions")
        tried = _tried(collector, group, plan, policy, sampling, seed)
        branches = [
            (place.episode.game.id, place.start(action))
            for place, actions in zip(group, tried, strict=True)
            for action in actions
            for _ in range(plan.continuations)
        ]
        if not branches:
            continue
        jobs.append(
            RolloutJob(
                id=job_id(stage, k),
                games=[game for game, _ in branches],
                starts=[start for _, start in branches],
                seed=derive(collector.seed, stage, k),
                policy_version=policy,
                sampling=sampling,
                max_steps=collector.max_steps,
            )
        )
    return jobs


def _tried(
    collector: Collector,
    places: Sequence[Place],
    plan: Vine,
    policy: str,
    sampling: Sampling,
    seed: int,
) -> list[list[Action]]:
    """The actions to try at each place."""
    # The recorded action, or none where only random ones are to be tried.
    tried: list[list[Action]] = [[place.recorded][: plan.actions] for place in places]
    if plan.actions > 1:
        request = ActRequest(
            states=[place.episode.state(place.t) for place in places],
            n=min(_SAMPLES * plan.actions, MAX_CANDIDATES),
            sampling=sampling,
            seed=seed,
        )
        answer = collector.services.act(request, policy)
        tried = [
            actions_to_try(place.recorded, sampled, plan.actions)
            for place, sampled in zip(places, answer.results, strict=True)
        ]
    return [
        actions + random_actions(place, actions, plan.random, derive(seed, k))
        for k, (place, actions) in enumerate(zip(places, tried, strict=True))
    ]
