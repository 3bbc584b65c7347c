"""Game files that the compiled engine cannot play are refused by name and reason."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.env.engine.compiled import CompiledGame, GameFileError
from tests.tiny_games import tiny_game

CONTENT = json.dumps(tiny_game())


def changed(part: str, old: str, new: str) -> str:
    game = tiny_game()
    text = game[part]
    assert isinstance(text, str)
    assert old in text
    return json.dumps({**game, part: text.replace(old, new)})


def cut(part: str, at: str) -> str:
    game = tiny_game()
    text = game[part]
    assert isinstance(text, str)
    return json.dumps({**game, part: text[: text.index(at)]})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        (CONTENT[:5000], "cut off"),
        ("[1, 2]", "not a JSON object"),
        ('{"pddl_domain": "", "grammar": ""}', "'pddl_problem'"),
        ("[" * 100_000, "nested too deeply"),
        (cut("pddl_problem", "(canContain"), "lacks :objects, :init or :goal"),
        (cut("pddl_problem", "(objectType ?o"), "cut off"),
        (cut("pddl_domain", "(receptacleType ?r Micro"), "cut off"),
        (cut("grammar", "slice {co}"), "action sliceobject"),
        (cut("grammar", "action look"), "lacks the action help"),
        (changed("pddl_domain", "(cleanable ?o)", "(heatable ?o)"), "defines cleanobject"),
        (changed("pddl_domain", "(:action help", "(:action dance"), "action dance"),
        (changed("pddl_problem", "(sliceable ", "(haunted "), "states haunted"),
        (changed("pddl_problem", "(:init", "(:init (opened Ghost_bar_1)"), "ghost_bar_1"),
        (changed("pddl_problem", "(inReceptacle ?o ?r)", "(full ?r)"), "task types"),
        (changed("grammar", "#look.feedback#", "#gaze#"), "#gaze#"),
        (changed("grammar", "opened(r:", "ajar(r:"), "ajar"),
        (changed("grammar", "{co.name}", "{co.weight * 2}"), "co.weight"),
        (changed("grammar", '"rhs": "TODO"', '"rhs": 7'), "7 is no text"),
        (changed("grammar", '"task"', '"aim"'), "no task sentence"),
    ],
)
def test_bad_file_is_refused_with_name_and_reason(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_text(content)
    with pytest.raises(GameFileError) as refusal:
        CompiledGame.parse(path)
    assert str(path) in str(refusal.value)
    assert reason in str(refusal.value)


@settings(max_examples=300, deadline=None)
@given(
    part=st.sampled_from(["pddl_problem", "pddl_domain", "grammar"]),
    start=st.floats(0, 1),
    length=st.integers(1, 200),
    put=st.text('()[]{}#|"\\:;-? \nabr', max_size=5),
)
def test_a_damaged_file_is_refused_or_playable(
    part: str, start: float, length: int, put: str
) -> None:
    game = tiny_game()
    text = game[part]
    assert isinstance(text, str)
    at = int(start * len(text))
    damaged = json.dumps({**game, part: text[:at] + put + text[at + length :]})
    try:
        state = CompiledGame.parse(damaged).reset()
    except GameFileError:
        return
    for command in ("look", "go to countertop 1", "take apple 2 from countertop 1", "inventory"):
        state.step(command)
