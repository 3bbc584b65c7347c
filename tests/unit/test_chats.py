"""Logs of chats as they are read, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentprm.chats import ChatsError, digest_of_chats, read_chats

ASKED = {"role": "user", "content": "You see a red door."}
OPENED = {"role": "assistant", "content": "open the red door"}
CHAT = [ASKED, OPENED, {"role": "user", "content": "It is open."}, OPENED]


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts))
    return path


def test_a_reward_is_the_last_answers_and_rewards_are_one_for_each(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl",
        {"messages": [*CHAT, ASKED], "reward": 0.5, "model": "passed over"},
        "",
        {"messages": CHAT, "rewards": [0.25, 0.5], "reward": None, "task": "doors"}
        | {f"field {k}": k for k in range(200)},
    )
    first, second = read_chats(log)  # the last one without the end of its line
    assert (first.rewards, first.outcome) == ((0, 0.5), 0.5)
    assert (second.rewards, second.outcome, second.task) == ((0.25, 0.5), 0.75, "doors")
    assert [message.content for message in second.messages] == [m["content"] for m in CHAT]
    assert second.source == f"{log}, line 3"


def test_a_log_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    line = json.dumps({"messages": CHAT, "reward": 1})
    log.write_text(f"{line}\n{line}\n", encoding="utf-8-sig")
    assert len(read_chats(log)) == 2
    log.write_text("\n", encoding="utf-8-sig")
    with pytest.raises(ChatsError, match="holds no chats"):
        read_chats(log)


def test_messages_are_those_of_openais_clients(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "You see "}, {"type": "text", "text": "a door."}]
    chat = [{"role": "developer", "content": "Win."}, {"role": "user", "content": parts}, OPENED]
    (read,) = read_chats(write(tmp_path / "log.jsonl", {"messages": chat, "reward": 1}))
    assert [(m.role, m.content) for m in read.messages[:2]] == [
        ("system", "Win."),
        ("user", "You see a door."),
    ]


def test_attempts_that_begin_alike_are_at_one_task(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "You see a blue door."}, OPENED]
    waited = [ASKED, {"role": "assistant", "content": "wait"}, *CHAT]
    lines = [{"messages": chat, "reward": 1} for chat in (CHAT, waited, other)]
    first, second, third = read_chats(write(tmp_path / "log.jsonl", *lines))
    assert first.task == second.task != third.task


def test_a_directory_is_read_file_by_file(tmp_path: Path) -> None:
    for name, reward in (("b", 0), ("a", 1)):
        write(tmp_path / f"{name}.jsonl", {"messages": CHAT, "reward": reward})
    (tmp_path / "notes.txt").write_text("no chats")
    assert [chat.outcome for chat in read_chats(tmp_path)] == [1, 0]


def test_the_digest_is_of_what_is_learned_from(tmp_path: Path) -> None:
    def digest(name: str, **line: Any) -> str:
        given = {"messages": CHAT, "reward": 1, "task": "doors", **line}
        return digest_of_chats(read_chats(write(tmp_path / name, given)))

    same = {digest("one"), digest("two", id=7), digest("three", reward=None, rewards=[0, 1])}
    assert len(same) == 1
    others = {digest("a", reward=0), digest("b", task="rooms"), digest("c", messages=CHAT[:2])}
    assert len(others | same) == 4


TOOL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "should be an object"),
        ({"reward": 1}, "messages: Field required"),
        ({"messages": [], "reward": 1}, "messages: List should have at least 1"),
        ({"messages": [ASKED], "reward": 1}, "there is no assistant message"),
        ({"messages": [ASKED, TOOL], "reward": 1}, "messages.1: .*put them in content"),
        ({"messages": [IMAGE, OPENED], "reward": 1}, "messages.0: .*nothing else is read"),
        ({"messages": [{"role": "expert", "content": ""}], "reward": 1}, "messages.0.role"),
        ({"messages": CHAT}, "give either `reward`"),
        ({"messages": CHAT, "reward": 1, "rewards": [0, 1]}, "give either `reward`"),
        ({"messages": CHAT, "reward": 1.5}, "reward: .*less than or equal to 1"),
        ({"messages": CHAT, "reward": "won"}, "reward: .*valid number"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "reward": NaN}', "reward: "),
        ({"messages": CHAT, "rewards": [1]}, "1 for 2 assistant messages"),
        ({"messages": CHAT, "rewards": [0, -1]}, "rewards.1: .*greater than or equal to 0"),
        ({"messages": CHAT, "rewards": [0.5, 1]}, "sum is 1.5.*divide"),
        ({"messages": CHAT, "reward": 1, "task": ""}, "task: "),
    ],
)
def test_a_line_that_is_no_chat_is_named(
    tmp_path: Path, line: dict[str, Any] | str, why: str
) -> None:
    log = write(tmp_path / "log.jsonl", {"messages": CHAT, "reward": 1}, line)
    with pytest.raises(ChatsError, match=rf"log\.jsonl, line 2: .*{why}"):
        read_chats(log)


def test_rewards_that_add_up_to_1_but_for_rounding_are_taken(tmp_path: Path) -> None:
    rewards = [0.1, 0.2, 0.3, 0.4]
    chat = [ASKED, *[OPENED] * 4]
    (read,) = read_chats(write(tmp_path / "log.jsonl", {"messages": chat, "rewards": rewards}))
    assert read.outcome == pytest.approx(1)


def test_a_log_without_chats_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ChatsError, match="no file or directory"):
        read_chats(tmp_path / "none.jsonl")
    with pytest.raises(ChatsError, match="holds no chats"):
        read_chats(tmp_path)
    with pytest.raises(ChatsError, match="holds no chats"):
        read_chats(write(tmp_path / "empty.jsonl", "", "  "))
