"""How good a policy is: it plays the games of a split once, alone or as one of N samples."""

from __future__ import annotations

from agentprm import results
from agentprm.config import Evaluation
from agentprm.protocol import ChoiceRule, Decoding, Game
from agentprm.runs import evaluation_stage, short_name
from services.trainer.rollouts.collect import Collector
from services.trainer.seeds import derive


def evaluation_games(collector: Collector, plan: Evaluation) -> tuple[list[Game], int]:
    """The games and the seed of their jobs: the same for every policy, so that rows make pairs.

    Raises:
        NoGames, ServiceError: as `Collector.games`.
    """
    games = collector.games(plan.split, plan.games, "evaluation", repeat=False)
    return games, derive(collector.seed, "evaluation")


def evaluate(
    collector: Collector,
    plan: Evaluation,
    *,
    policy: str,
    prm: str | None,
    choice: ChoiceRule = ChoiceRule.PRM,
    stage: str | None = None,
    names: tuple[str, str | None] | None = None,
) -> results.Row:
    """The row of the table for π (`policy/1`), or for the best of N of its actions by Q (`prm/0`).

    With another `choice` one of the N is taken by that rule, and no PRM. `stage` names the records,
    where they are not those of the run's own table. `names` are what the row calls π and Q, where
    their versions do not say.

    Raises:
        NoGames: as `Collector.games`.
        JobsFailed, QueueError, ServiceError: as `Collector.collect`.
    """
    policy_name = short_name(policy)
    prm_name = None if prm is None else short_name(prm)
    chooser = prm_name if choice is ChoiceRule.PRM else choice.value
    if stage is None:
        stage = evaluation_stage(policy_name, chooser)
    games, seed = evaluation_games(collector, plan)
    jobs = collector.jobs(
        stage,
        games,
        policy=policy,
        prm=prm,
        sampling=plan.sampling if chooser is None else plan.best_of_sampling,
        best_of=1 if chooser is None else plan.best_of,
        beta=0.0 if prm is None else plan.best_of_beta,
        choice=choice,
        seed=seed,
    )
    called, called_prm = names or (policy_name, prm_name)
    by = called_prm if choice is ChoiceRule.PRM else choice.value
    how = "" if by is None else f", one of {plan.best_of} by {by}"
    collector.collect(stage, jobs, f"{called} plays {len(games)} games of {plan.split}{how}")
    return results.summarise(
        collector.records.episodes(stage),
        policy=called,
        prm=called_prm,
        max_steps=collector.max_steps,
        seed=collector.seed,
    )


def evaluate_chat(collector: Collector, plan: Evaluation, model: str) -> results.Row:
    """The row of a chat model behind an endpoint that the workers know: the ReAct baseline.

    It writes commands freely, as an endpoint draws from no list.

    Raises:
        NoGames: as `Collector.games`.
        JobsFailed, QueueError, ServiceError: as `Collector.collect`.
    """
    games, seed = evaluation_games(collector, plan)
    jobs = collector.jobs(
        "eval-react",
        games,
        actor="chat",
        policy=model,
        sampling=plan.sampling.model_copy(update={"decoding": Decoding.FREE}),
        seed=seed,
    )
    collector.collect("eval-react", jobs, f"{model} plays {len(games)} games of {plan.split}")
    return results.summarise(
        collector.records.episodes("eval-react"),
        policy=f"ReAct({model})",
        prm=None,
        max_steps=collector.max_steps,
        seed=collector.seed,
    )
