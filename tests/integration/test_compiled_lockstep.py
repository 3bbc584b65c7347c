"""The compiled engine beside TextWorld, which is the judge: every character, every command."""

import json
import os
import random
from pathlib import Path

import pytest

from services.env.engine.check import Reference, check, play, sample
from services.env.engine.compiled import CompiledGame
from tests.tiny_games import GOALS, Generation, tiny_game


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def real_games() -> Path:
    """Where real games are, if anywhere."""
    for place in (os.environ.get("ALFWORLD_DATA"), "~/.cache/agentprm/alfworld"):
        if place and sample(found := Path(place).expanduser(), None, 1, seed=0):
            return found
    pytest.skip("no ALFWorld games: neither $ALFWORLD_DATA nor ~/.cache/agentprm/alfworld")


GENERATIONS: tuple[Generation, ...] = ("older", "current", "patched")


@pytest.mark.parametrize(
    ("task_type", "generation"), list(zip(GOALS, GENERATIONS * 2, strict=True))
)
def test_tiny_games_of_all_generations(
    task_type: str, generation: Generation, reference: Reference, tmp_path: Path
) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(tiny_game(task_type, generation)))
    episode = play(reference, path, 40, random.Random(task_type + generation))
    assert episode.mismatch is None
    assert episode.won
    assert episode.steps == 40


def test_task_sentences_are_read_as_textworld_reads_them(
    reference: Reference, tmp_path: Path
) -> None:
    for number, task in enumerate(
        ["heat it; then rest", 'the \\"red\\" one', "50% <off>", "a [b]"]
    ):
        path = tmp_path / f"{number}.tw-pddl"
        path.write_text(json.dumps(tiny_game(task=task)))
        reference.load(path)
        assert CompiledGame.parse(path).reset().observation == reference.reset().observation


@pytest.mark.games
def test_a_sample_of_real_games() -> None:
    report = check(sample(real_games(), None, 4, seed=11), steps=18, seed=11)
    assert report.first_mismatch is None
    assert (report.games, report.steps, report.won) == (4, 72, 4)
    assert report.step_speedup > 1


def test_a_check_finds_differences_and_resumes(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = tmp_path / "game.tw-pddl"
    game.write_text(json.dumps(tiny_game()))
    monkeypatch.setattr("services.env.engine.compiled.state.NOTHING_HAPPENS", "Nothing happens!")
    log = tmp_path / "log.jsonl"
    first = check([game], steps=60, seed=0, log=log)
    assert first.mismatches == 1
    assert first.first_mismatch is not None
    assert first.first_mismatch["field"] == "observation"
    assert first.first_mismatch["expected"] == "Nothing happens."
    assert check([game], steps=60, seed=0, log=log) == first
    assert len(log.read_text().splitlines()) == 1
