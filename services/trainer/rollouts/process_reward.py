"""The process reward of a policy: what the PRM thinks of the actions it would take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from agentprm.config import Evaluation
from agentprm.measurements import ProcessReward
from agentprm.protocol import ActRequest, ActResult, State
from agentprm.results import Z_95
from agentprm.runs import evaluation_stage
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.online import sample_states
from services.trainer.rollouts.records import Records
from services.trainer.seeds import derive

_SAMPLES = 8
"""Actions sampled in a state."""
_BATCH = 16
"""States of one request."""


def validation_states(records: Records, count: int, seed: int) -> list[State]:
    """At most `count` states of the games that evaluate, few of one game, visited by π_0.

    They are the same for every checkpoint of a run, so that its process rewards can be compared.
    """
    episodes = records.episodes(evaluation_stage("pi_0"))
    games = len({episode.game.id for episode in episodes})
    per_game = -(-count // max(1, games))
    return sample_states(episodes, count, per_game, derive(seed, "validation-states"))


def process_reward(
    collector: Collector, policy: str, prm: str, states: Sequence[State], plan: Evaluation
) -> ProcessReward:
    """E_{a~π} Q(s, a), the mean over `states`, by samples drawn as the policy is when it plays.

    Raises:
        ServiceError: a service does not answer.
        WrongVersion: one answers with another version.
    """
    collector.serve(policy=policy, prm=prm)
    means = []
    for first in range(0, len(states), _BATCH):
        request = ActRequest(
            states=list(states[first : first + _BATCH]),
            n=_SAMPLES,
            prm=True,
            sampling=plan.sampling,
            seed=derive(collector.seed, "process-reward", first),
        )
        answer = collector.services.act(request, policy, prm)
        means += [mean_q(result) for result in answer.results]
    spread = statistics.stdev(means) if len(means) > 1 else 0.0
    error = Z_95 * spread / len(means) ** 0.5
    return ProcessReward(states=len(means), mean=statistics.fmean(means), error=error)


def mean_q(result: ActResult) -> float:
    """The mean Q of all samples: a candidate counts as often as it was drawn."""
    scored = [(c.q, c.count) for c in result.candidates if c.q is not None]
    return sum(q * count for q, count in scored) / sum(count for _, count in scored)
