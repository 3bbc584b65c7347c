"""The compiled engine beside TextWorld, which is the judge: every character, every command."""

import json
import random
from pathlib import Path

import pytest

from services.env.engine.check import Reference, check, play, sample
from services.env.engine.compiled import CompiledGame
from services.env.engine.compiled.relations import RELATIONS
from services.env.engine.players import choose
from tests.tiny_games import GOALS, Generation, tiny_game


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


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


def test_facts_are_those_of_textworld(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(tiny_game()))
    game = CompiledGame.parse(path)
    state = game.reset()
    reference.load(path)
    reference.reset()
    rng = random.Random(0)
    for left in range(60, 0, -1):
        command = choose(state, left, rng)
        reference.step(command)
        state.step(command)
        expected = {x for x in reference.facts() if x[0] in RELATIONS}
        found = {
            (name, *(game.ids[x] for x in row))
            for name, relation in RELATIONS.items()
            for row in relation.rows(state, [None] * len(relation.types))
        }
        assert found == expected


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
def test_a_sample_of_real_games(alfworld_data: Path) -> None:
    report = check(sample(alfworld_data, None, 4, seed=11), steps=18, seed=11)
    assert report.first_mismatch is None
    assert (report.games, report.steps, report.won) == (4, 72, 4)
    assert report.step_speedup > 0


def test_a_difference_is_found(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(tiny_game()))
    monkeypatch.setattr("services.env.engine.compiled.state.NOTHING_HAPPENS", "Nothing happens!")
    mismatch = play(reference, path, 60, random.Random(0)).mismatch
    assert mismatch is not None
    assert (mismatch["field"], mismatch["expected"]) == ("observation", "Nothing happens.")


def test_a_check_counts_refused_games_and_resumes(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tw-pddl", tmp_path / "bad.tw-pddl"
    good.write_text(json.dumps(tiny_game()))
    bad.write_text("{")
    log = tmp_path / "log.jsonl"
    report = check([good, bad], steps=20, seed=0, log=log)
    assert (report.games, report.steps, report.won, report.mismatches) == (2, 20, 1, 1)
    assert report.first_mismatch is not None
    assert str(bad) in report.first_mismatch["actual"]
    bad.unlink()
    assert check([good, bad], steps=20, seed=0, log=log) == report
