"""What a PRM is fitted on where it is fitted on chats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agentprm.chats import CHATS_FILE, Chat, ChatsError, digest_of_chats, read_chats
from agentprm.config import load_config
from agentprm.prompts import load_prompt
from agentprm.protocol import ChatMessage, Conversation, Message, ScoreRequest
from services.prm.scorer import Scorer
from services.trainer.chats.fit import main
from services.trainer.chats.samples import chat_row, chat_samples, chat_targets, split_chats
from services.trainer.training.fitting import load_tokenizer
from tests.models import tiny_causal_lm
from tests.scorers import tiny_scorer


def chat(
    said: Sequence[str], rewards: Sequence[float], task: str = "a", seen: str = "you see a desk"
) -> Chat:
    """A chat in which the agent says these things, each after it has seen something."""
    messages = [
        message
        for text in said
        for message in (
            Message(role="user", content=seen),
            Message(role="assistant", content=text),
        )
    ]
    return Chat(tuple(messages), tuple(rewards), task, "log.jsonl, line 7")


# --- targets --------------------------------------------------------------------------------------


def test_the_target_is_the_mean_over_all_chats_that_came_by() -> None:
    chats = [
        chat(["look", "go to desk"], [0, 1]),  # won in two turns
        chat(["look", "wait", "go to desk"], [0, 0, 1]),  # won in three
        chat(["look", "wait"], [0, 0]),  # lost
    ]
    looking = (0.5 + 0.25 + 0) / 3
    assert chat_targets(chats, 0.5) == [
        pytest.approx([looking, 1]),
        pytest.approx([looking, (0.5 + 0) / 2, 1]),
        pytest.approx([looking, (0.5 + 0) / 2]),
    ]


def test_rewards_on_the_way_are_discounted_from_the_turn() -> None:
    # 0.25 + 0.5 * 0 + 0.25 * 0.5; 0 + 0.5 * 0.5; 0.5
    assert chat_targets([chat(["a", "b", "c"], [0.25, 0, 0.5])], 0.5) == [[0.375, 0.25, 0.5]]


@pytest.mark.parametrize(
    "other",
    [
        chat(["look", "wait"], [0, 0], task="b"),
        chat(["look", "wait"], [0, 0], seen="you see a lamp"),
        chat(["lookw", "ait"], [0, 0]),
    ],
)
def test_other_words_before_it_or_another_task_make_it_another_action(other: Chat) -> None:
    assert chat_targets([chat(["look", "wait"], [0, 1]), other], 1.0) == [[1, 1], [0, 0]]


# --- rows -----------------------------------------------------------------------------------------


def test_what_is_trained_on_is_what_is_scored(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, seed=0)
    asked = chat(["take mug", "look", "go to desk 1"], [0, 0, 1])
    system = Message(role="system", content="you are in a room .")
    after = Message(role="user", content="nothing happens .")
    messages = (system, *asked.messages, after)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    sent = [ChatMessage(role=m.role, content=m.content) for m in messages]
    (scored,) = scorer.plan(ScoreRequest(conversations=[Conversation(messages=sent)])).rows

    whole = Chat(messages, asked.rewards, asked.task, asked.source)
    tokenizer = load_tokenizer(tmp_path)
    (sample,) = chat_samples(tokenizer, [whole], [[0.1, 0.2, 0.3]], 1000)
    assert sample.positions == scored.ends
    assert sample.row.ids == scored.ids[: scored.ends[-1] + 1]  # nothing behind the last answer
    assert sample.targets == [0.1, 0.2, 0.3]
    assert sample.outcome == 1


def test_turns_that_end_beyond_the_limit_are_left_out(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    long = chat(["take mug", "look", "go to desk 1"], [0, 0, 1])
    ends = [end for _, end in chat_row(tokenizer, long, 1000).spans]
    (sample,) = chat_samples(tokenizer, [long], [[0.1, 0.2, 0.3]], ends[2] - 1)
    assert len(sample.row.ids) == ends[1]
    assert sample.targets == [0.1, 0.2]
    assert chat_samples(tokenizer, [long], [[0.1, 0.2, 0.3]], ends[0] - 1) == []


def test_a_chat_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    first = Chat((Message(role="assistant", content="look"),), (1.0,), "a", "log.jsonl, line 7")
    with pytest.raises(ChatsError, match=r"log\.jsonl, line 7: .*a user message has to come"):
        chat_row(tokenizer, first, 1000)


# --- the split ------------------------------------------------------------------------------------


def test_a_task_is_on_one_side(tmp_path: Path) -> None:
    base = tiny_causal_lm(tmp_path, 0)
    chats = [chat(["look"], [k % 2], task=f"{k % 20}") for k in range(60)]
    long = chat(["look " * 200], [1], task="long")
    config = load_config("smoke", 3, {"prm.validation_fraction": 0.25, "prm.max_tokens": 100})
    data = split_chats(base, [*chats, long], config)
    assert (len(data.training) + len(data.validation), data.left_out) == (60, 1)
    assert data.tasks.splits == []
    training, validation = set(data.tasks.training), set(data.tasks.validation)
    assert not training & validation
    assert training | validation == {*map(str, range(20)), "long"}
    assert 1 <= len(validation) <= 10
    with pytest.raises(ChatsError, match="raise prm"):
        split_chats(base, [long], config)


@pytest.mark.parametrize(
    ("more", "why"), [("", "there is no directory ./no/such/model"), ("\n", "has changed since")]
)
def test_what_a_fit_cannot_begin_with_ends_it_with_a_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: str,
    why: str,
) -> None:
    """A model that is not there; a log to which an agent has written since it was begun."""
    config = load_config("smoke", overrides={"model": "./no/such/model"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    log = tmp_path / "chats.jsonl"
    line = '{"messages": [{"role": "assistant", "content": "look"}], "reward": 1}\n'
    log.write_text(line)
    note = {"sha256": digest_of_chats(read_chats(log))}
    (tmp_path / CHATS_FILE).write_text(json.dumps(note))
    log.write_text(line + (more and line))
    monkeypatch.setattr("sys.argv", ["fit", "--run", str(tmp_path), "--chats", str(log)])
    assert main() == 1
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said
