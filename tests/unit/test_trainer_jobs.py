"""What the jobs of a stage hold: games, starts, hints, seeds, and how the policy is sampled."""

from __future__ import annotations

from pathlib import Path

from agentprm.config import Evaluation
from agentprm.protocol import Action, Split, Start
from services.trainer.rollouts.evaluation import evaluate
from tests.unit.trainer_collector import GAMES, Alone


def test_games_are_taken_after_those_that_are_skipped(tmp_path: Path) -> None:
    collector = Alone(tmp_path)
    order = collector.games(Split.TRAIN, 20, "rollouts")
    assert collector.games(Split.TRAIN, 5, "rollouts", skip=7) == order[7:12]
    assert collector.games(Split.TRAIN, 5, "rollouts", skip=18) == [*order[18:], *order[:3]]
    assert collector.games(Split.TRAIN, 5, "rollouts", skip=18, repeat=False) == order[18:]


def test_every_job_has_the_starts_the_hints_and_the_seeds_of_its_own_games(tmp_path: Path) -> None:
    starts = [Start(action=Action(command=f"go to shelf {k}")) for k in range(20)]
    hints = [f"go to shelf {k}" for k in range(20)]
    jobs = Alone(tmp_path).jobs("demos", GAMES, starts=starts, hints=hints)
    assert [len(job.games) for job in jobs] == [8, 8, 4]
    assert [game for job in jobs for game in job.games] == [game.id for game in GAMES]
    assert [start for job in jobs for start in job.starts or []] == starts
    assert [hint for job in jobs for hint in job.hints or []] == hints
    assert len({job.seed + k for job in jobs for k in range(len(job.games))}) == len(GAMES)


def test_the_first_version_is_loaded_whatever_serves_under_its_name(tmp_path: Path) -> None:
    """It may be that of another run; one that was loaded is loaded again only after another."""
    collector = Alone(tmp_path)
    for _ in range(2):
        collector.serve(policy="policy/0")
    assert collector.policy.loaded == ["policy/0"]
    collector.policy.version = "policy/1"
    collector.serve(policy="policy/0")
    assert collector.policy.loaded == ["policy/0"] * 2


def test_all_policies_are_evaluated_in_the_same_games_from_the_same_seeds(tmp_path: Path) -> None:
    collector = Alone(tmp_path)
    plan = Evaluation(games=10, best_of=4, best_of_beta=0.1)
    evaluate(collector, plan, policy="policy/0", prm=None)
    evaluate(collector, plan, policy="policy/1", prm="prm/0")
    one, two = collector.stages.values()
    assert [(job.seed, job.games) for job in one] == [(job.seed, job.games) for job in two]
    assert len({job.seed for job in one}) == len(one) == 2
    assert {(job.best_of, job.beta, job.sampling.temperature) for job in one} == {(1, 0.0, 0.5)}
    assert {(job.best_of, job.beta, job.sampling.temperature) for job in two} == {(4, 0.1, 1.0)}
