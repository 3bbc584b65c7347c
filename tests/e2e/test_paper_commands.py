"""The rest of the paper on real games: InversePRM with its monitor and look-ahead, and a run of
shaping with rejection sampling."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentprm.facts import METADATA
from agentprm.protocol import JobResult
from agentprm.runs import read_episodes, read_metrics

pytestmark = [pytest.mark.games, pytest.mark.slow, pytest.mark.timeout(900)]

PRESET = Path(__file__).parent / "kill.toml"
SETTINGS = {
    "algorithm": "inverse-prm",
    "iterations": 2,
    "evaluation.games": 2,
    "policy_replicas": 1,
    "preferences.inverse_margin": 0.0,
    "prm.validation_fraction": 0.5,  # some of it has to be games of rollouts
    "monitor.states": 8,
}

SHAPED = {
    "shaping.alpha": 0.5,
    "shaping.games": 3,
    "shaping.per_game": 2,
    "update": "rejection",
    "evaluation.games": 2,
    "policy_replicas": 1,
}


def agentprm(*arguments: str) -> str:
    """What the command printed; it has to succeed."""
    command = [sys.executable, "-m", "agentprm.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, alfworld_data: Path) -> Path:
    """A run of algorithm 2."""
    return train(tmp_path_factory, alfworld_data, SETTINGS)


@pytest.fixture(scope="module")
def shaped(run: Path, tmp_path_factory: pytest.TempPathFactory, alfworld_data: Path) -> Path:
    """A run of algorithm 1, its targets shaped by a policy of another run; rejection sampling."""
    reference = run / "checkpoints" / "policy" / "0"
    settings = {**SHAPED, "shaping.reference": reference}
    return train(tmp_path_factory, alfworld_data, settings)


def train(factory: pytest.TempPathFactory, data: Path, settings: dict[str, Any]) -> Path:
    """A run of the preset with other settings."""
    run = factory.mktemp("paper") / "run"
    command = ["train", "--preset", str(PRESET), "--run", str(run), "--games", str(data)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    agentprm(*command)
    return run


@pytest.mark.parametrize("i", [0, 1])
def test_next_actions_are_drawn_anew_in_each_iteration(run: Path, i: int) -> None:
    """By π_i, behind transitions of the expert and of the learner (algorithm 2)."""
    drawn = [a for result in results(run, f"pi_{i}-next-actions") for a in result.next_actions]
    assert {action.policy_version for action in drawn} == {f"policy/{i}"}
    asked = {action.episode_id for action in drawn}
    for stage in ("demonstrations", *(f"pi_{k}-rollouts" for k in range(i + 1))):
        assert asked & {episode.id for episode in read_episodes(run, stage)}
    assert facts(run, f"prm/{i}")["algorithm"] == "inverse-prm"


@pytest.mark.parametrize("i", [1, 2])
def test_the_monitor_reads_where_nothing_was_fitted(run: Path, i: int) -> None:
    read = [line for line in read_metrics(run) if line["stage"] == f"pi_{i}" and "kl" in line]
    assert read[0]["step"] == 0
    assert abs(read[0]["kl"]) < 1e-4  # π_{i-1} against itself
    assert read[-1]["step"] > 0
    assert read[-1]["kl"] != read[0]["kl"]

    held_out = set(facts(run, f"prm/{i - 1}")["validation_games"])
    (stage,) = (file.stem for file in (run / "records").glob(f"pi_{i}-preferences-*.jsonl"))
    states = [p.state for result in results(run, stage) for p in result.preferences]
    asked = {(s.history[0].observation if s.history else s.observation) for s in states}
    openings = {
        episode.turns[0].observation
        for episode in read_episodes(run, f"pi_{i - 1}-rollouts")
        if episode.game.id in held_out
    }
    assert asked
    assert openings
    assert not asked & openings


def test_a_world_model_is_fitted_measured_and_planned_in(
    run: Path, alfworld_data: Path, tmp_path: Path
) -> None:
    """The run's PRM is none to plan by, as it says; the same weights that say nothing are taken."""
    agentprm("world", "fit", "--run", str(run))
    rows: list[dict[str, Any]] = orjson.loads(
        agentprm("world", "eval", "--run", str(run), "--count", "2", "--json")
    )
    assert {row["split"] for row in rows} == {"train", "valid_seen"}
    bare = tmp_path / "prm"
    shutil.copytree(run / "checkpoints" / "prm" / "0", bare)
    (bare / METADATA).unlink()
    registry = ["--registry", str(run / "checkpoints")]
    agentprm("checkpoints", "adopt", str(bare), "prm/9", *registry)
    plan = ["plan", "--run", str(run), "--prm", "prm/9", "--depth", "2", "--width", "2"]
    plan += ["--games", str(alfworld_data), "--count", "1", "--max-steps", "2", "--json"]
    (row,) = orjson.loads(agentprm(*plan))
    assert (row["games"], row["actions"]) == (1, 2.0)


def test_a_policy_from_elsewhere_shapes_the_targets(shaped: Path) -> None:
    """V^μ is fitted once, on rollouts of the reference, before the first policy is measured."""
    played = read_episodes(shaped, "reference-rollouts")
    assert Counter(Counter(episode.game.id for episode in played).values()) == {2: 3}
    assert {turn.policy_version for episode in played for turn in episode.turns} == {"reference/0"}
    assert facts(shaped, "value/0")["kind"] == "value"
    assert facts(shaped, "prm/0")["metrics"]["steps"] > 0
    stages = [line["stage"] for line in read_metrics(shaped)]
    assert stages.index("v_reference") < stages.index("eval-pi_0") < stages.index("q_0")


def test_rejection_sampling_is_of_the_policys_own_states_and_q(shaped: Path) -> None:
    groups = [group for result in results(shaped, "pi_1-candidates") for group in result.groups]
    visited = {
        (episode.game.task, turn.observation)
        for episode in read_episodes(shaped, "pi_0-rollouts")
        for turn in episode.turns
    }
    assert groups
    assert {(group.state.task, group.state.observation) for group in groups} <= visited
    assert {(g.policy_version, g.prm_version) for g in groups} == {("policy/0", "prm/0")}
    learned = facts(shaped, "policy/1")
    assert (learned["kind"], learned["metrics"]["rows"]) == ("sft", len(groups))


def facts(run: Path, version: str) -> dict[str, Any]:
    """What is said beside a checkpoint."""
    found: dict[str, Any] = orjson.loads((run / "checkpoints" / version / METADATA).read_bytes())
    return found


def results(run: Path, stage: str) -> list[JobResult]:
    """What a stage recorded."""
    lines = (run / "records" / f"{stage}.jsonl").read_bytes().splitlines()
    return [JobResult.model_validate_json(line) for line in lines]
