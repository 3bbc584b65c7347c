"""Policy updates through the fits of a run, on what was recorded; those online are tested beside
their fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from agentprm.config import Config, PolicyUpdate
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Group, JobResult
from services.trainer.fits.jobs import FitJob, Fits
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.updates import UPDATES
from tests.unit.trainer_episodes import create_small, episode, group, log_prob

PROMPT = load_prompt("chat")
LOST = episode(["go to fridge 1", "open fridge 1"], [0, 0])
WON = episode(["go to fridge 1", "close fridge 1"], [0, 1], index=1)
STATE = LOST.state(1)
BAD, GOOD = LOST.turns[1].action, WON.turns[1].action
FIT = {"learning_rate": 1e-2, "batch_tokens": 2000, "epochs": 4}
Logged = list[tuple[str, Mapping[str, float]]]


def update(
    tmp_path: Path, kind: PolicyUpdate, rollouts: list[JobResult]
) -> tuple[list[float], Logged]:
    """log π(GOOD) − log π(BAD) in STATE before and after, and what was logged."""
    small, out = create_small(tmp_path), tmp_path / "out"
    config = Config.model_validate(
        {
            "preset": "p",
            "demonstrations": {"games": 1},
            "rollouts": {"games": 1, "per_game": 1},
            "preferences": {"pairs": 1},
            "rejection": FIT,
            "update": kind,
        }
    )
    records = Records(tmp_path / "records")
    for result in rollouts:
        records.append(result)
    logged: Logged = []
    fits = Fits(
        tmp_path,
        config,
        records,
        PROMPT,
        lambda stage, _, values: logged.append((stage, values)),
        Progress(Console(quiet=True)),
        None,
    )
    out.mkdir()
    fits.perform(FitJob(kind="policy", iteration=1, base=small, out=out))
    margins = [
        log_prob(directory, PROMPT, STATE, GOOD) - log_prob(directory, PROMPT, STATE, BAD)
        for directory in (small, out)
    ]
    return margins, logged


def candidates(*groups: Group) -> JobResult:
    return JobResult(
        job_id="pi_1-candidates-0000", worker="w", seconds=0, groups=list(groups), dropped=2
    )


def test_rejection_sampling_learns_the_best_candidate(tmp_path: Path) -> None:
    """It is the one that was drawn least, and never won."""
    other = Action(reason="look", command="help")
    scored = group(STATE, [(BAD, 0.2, 5), (GOOD, 0.8, 1), (other, 0.5, 2)])
    margins, logged = update(tmp_path, PolicyUpdate.REJECTION, [candidates(scored)])
    assert margins[1] > margins[0] + 0.5
    (stage, counts) = logged[-1]
    assert stage == "pi_1"
    assert counts["not_scored"] == 2
    assert counts["q_gain"] == pytest.approx(0.8 - (5 * 0.2 + 0.8 + 2 * 0.5) / 8)


def test_rejection_by_outcome_learns_the_won_rollouts_alone(tmp_path: Path) -> None:
    """It asks no PRM: the actions of a lost rollout do not count, whatever else is recorded."""
    rollouts = JobResult(
        job_id="pi_0-rollouts-0000", worker="w", seconds=0, episodes=[LOST, LOST, WON]
    )
    opposite = candidates(group(STATE, [(BAD, 0.9, 1), (GOOD, 0.1, 1)]))
    margins, _ = update(tmp_path, PolicyUpdate.OUTCOME_REJECTION, [rollouts, opposite])
    assert margins[1] > margins[0] + 0.5


def test_every_update_that_can_be_asked_for_is_there() -> None:
    assert set(UPDATES) == set(PolicyUpdate)
    assert Config.model_fields["update"].default is PolicyUpdate.ONLINE_DPO


def test_results_of_before_there_were_groups_are_read() -> None:
    old = '{"job_id": "pi_1-preferences-a-0000", "worker": "w", "seconds": 0.1, "dropped": 1}'
    assert JobResult.model_validate_json(old).groups == []
