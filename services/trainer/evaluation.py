"""How good a policy is: it plays the games of a split once, alone or steered by a PRM."""

from __future__ import annotations

from agentprm import results
from agentprm.config import Evaluation
from services.trainer.collect import Collector
from services.trainer.seeds import derive


def evaluate(
    collector: Collector,
    plan: Evaluation,
    *,
    policy: str,
    prm: str | None,
    stage: str | None = None,
) -> results.Row:
    """The row of the table for π (`policy/1`), or for the best of N of its actions by Q (`prm/0`).

    Every policy plays the same games from the same seeds, so that rows can be compared in pairs.
    `stage` names the records, where they are not those of the run's own table.
    """
    policy_name = policy.replace("policy/", "pi_")
    prm_name = None if prm is None else prm.replace("prm/", "q_")
    if stage is None:
        stage = f"eval-{policy_name}" if prm_name is None else f"eval-{policy_name}-{prm_name}"
    games = collector.games(plan.split, plan.games, "evaluation", repeat=False)
    jobs = collector.jobs(
        stage,
        games,
        policy=policy,
        prm=prm,
        sampling=plan.sampling if prm is None else plan.best_of_sampling,
        best_of=1 if prm is None else plan.best_of,
        seed=derive(collector.seed, "evaluation"),
    )
    steered = "" if prm is None else f", best of {plan.best_of} by {prm_name}"
    collector.collect(
        stage, jobs, f"{policy_name} plays {len(games)} games of {plan.split}{steered}"
    )
    return results.summarise(
        collector.records.episodes(stage),
        policy=policy_name,
        prm=prm_name,
        max_steps=collector.max_steps,
        seed=collector.seed,
    )
