from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentprm.prompts import load_prompt
from agentprm.protocol import Action
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.forks import episode_forks
from services.trainer.training.rows import (
    NothingToTrainOnError,
    action_row,
    all_rows,
    answer_rows,
    episode_rows,
    require_rows,
)
from services.trainer.world.transitions import transitions
from tests.unit.trainer_episodes import create_small, episode

STATES = [episode(["look"] * 6, [0] * 6).state(t) for t in (0, 2, 5)]
ACTIONS = [
    Action(reason="find mug", command="go to cabinet 1"),
    Action(reason="", command="look"),
    Action(reason="find mug", command="take mug 1 from fridge 1"),
]


@pytest.mark.parametrize("name", ["chat", "state"])
def test_answers_to_one_state_are_tokenised_as_each_alone_and_the_state_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt(name)
    texts: list[str] = []
    encode = tokenizer.encode

    def counted(text: str, **options: Any) -> Any:
        texts.append(text)
        return encode(text, **options)

    monkeypatch.setattr(tokenizer, "encode", counted)
    for state in STATES:
        alone = [action_row(tokenizer, prompt, state, action) for action in ACTIONS]
        texts.clear()
        ids, answers = answer_rows(tokenizer, prompt, state, ACTIONS)
        read = sum(map(len, texts))
        assert [(ids + answer, (len(ids), len(ids + answer))) for answer in answers] == alone
        texts.clear()
        action_row(tokenizer, prompt, state, ACTIONS[0])
        assert read < sum(map(len, texts)) + 100  # for the two other answers


def test_what_episodes_have_in_common_is_tokenised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt("chat")
    played = [episode(["look"] * turns, [0] * turns) for turns in (6, 6, 5)]
    expected = [all_rows(tokenizer, prompt, [each], 2048)[0][1] for each in played]
    calls, encode = 0, tokenizer.encode

    def counted(text: str, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return encode(text, **options)

    monkeypatch.setattr(tokenizer, "encode", counted)
    all_rows(tokenizer, prompt, played[:1], 2048)
    alone, calls = calls, 0
    assert all_rows(tokenizer, prompt, played, 2048) == list(enumerate(expected))
    assert calls <= alone + 1


@pytest.mark.parametrize("name", ["chat", "state"])
def test_of_a_game_that_was_given_up_at_once_nothing_is_read(tmp_path: Path, name: str) -> None:
    """A first observation that is longer than the model leaves an episode without turns."""
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt(name)
    nothing, played = episode([], []), episode(["look"], [0])
    assert episode_rows(tokenizer, prompt, nothing, 2048) == []
    assert [k for k, _ in all_rows(tokenizer, prompt, [nothing, played], 2048)] == [1]
    assert list(episode_forks(tokenizer, prompt, nothing, {}, 2048)) == []
    assert list(transitions(nothing)) == []


def test_where_nothing_can_be_read_the_error_says_what_to_raise(tmp_path: Path) -> None:
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt("chat")
    with pytest.raises(NothingToTrainOnError, match="none of 1 episodes has a turn"):
        require_rows([], [episode(["look"], [0])], 16)
    assert all_rows(tokenizer, prompt, [episode(["look"], [0])], 16) == []
    assert all_rows(tokenizer, prompt, [], 16) == []
