"""The whole loop in an environment that is not ALFWorld: the example of the docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from transformers import AutoTokenizer

from agentprm.results import read_results
from agentprm.runs import read_episodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PRESET = Path(__file__).parent / "kill.toml"
SORTING = "examples.sorting:Sorting"
SETTINGS = (
    "max_steps=5",
    "policy_replicas=1",
    "rollouts.vine={states=4, actions=0, random=1, continuations=1}",
    "rollouts.exploration.reset={fraction=0.25}",
    "preferences.pairs=24",
)


def agentprm(*arguments: object) -> bytes:
    command = [sys.executable, "-m", "agentprm.cli", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600).stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("own") / "run"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    agentprm("train", "--run", run, "--preset", PRESET, "--games", SORTING, *settings)
    return run


def test_it_is_trained_in(run: Path) -> None:
    assert [(row.policy, row.prm, row.games) for row in read_results(run)] == [
        ("pi_0", None, 6),
        ("pi_0", "q_0", 6),
        ("pi_1", None, 6),
        ("pi_1", "q_0", 6),
    ]
    assert all(episode.won for episode in read_episodes(run, "demonstrations"))
    vines = read_episodes(run, "pi_0-vine")
    assert len(vines) == 4
    for episode in [*vines, *read_episodes(run, "pi_0-rollouts"), *read_episodes(run, "eval-pi_1")]:
        assert episode.game.task == "sort the digits"
        assert episode.provenance.engine.startswith(f"{SORTING} ")
        played = episode.turns[episode.start :]
        assert all(turn.action.command in ("", *turn.admissible) for turn in played)


def test_the_model_has_learned_its_words(run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoints" / "policy" / "1")
    words = [tokenizer.decode([i]) for i in tokenizer.encode("REASON: 1 3 4\nACTION: put 15")]
    assert words == [
        "REASON",
        ":",
        " ",
        "1",
        " ",
        "3",
        " ",
        "4",
        "\n",
        "ACTION",
        ":",
        " put",
        " ",
        "1",
        "5",
    ]
    other = "Grüße: 猫\n\n\t✓"
    assert tokenizer.decode(tokenizer.encode(other)) == other


def test_its_checkpoints_are_measured_and_planned_with(run: Path) -> None:
    """By self-consistency, which takes no PRM, and by the PRM."""
    policy, common = run / "checkpoints" / "policy" / "1", ["--count", "4", "--json"]
    chosen = ["--policy", policy, "--choice", "majority", "--best-of", "4", "--games", SORTING]
    [row] = orjson.loads(agentprm("eval", *chosen, "--max-steps", "5", *common))
    assert (row["games"], row["best_of"]) == (4, 4)
    assert (row["choice"], row["prm"]) == ("majority", None)
    [row] = orjson.loads(agentprm("plan", "--run", run, "--model", "true", *common))
    assert (row["games"], row["max_steps"]) == (4, 5)  # as in the run
