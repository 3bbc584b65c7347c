import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentprm.encoding import encode, encode_answers
from agentprm.models.memory import Memory, sizeof
from agentprm.models.remembering import MAX_BYTES, RememberingTokenizer
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Message, State
from tests.models import word_tokenizer
from tests.scorers import episode


class Counted:
    """A tokenizer that counts what it is asked for."""

    def __init__(self, template: str | None = None) -> None:
        self._tokenizer = word_tokenizer()
        if template:
            self._tokenizer.chat_template = template
        self.chat_template = self._tokenizer.chat_template
        self.eos_token: str | None = None
        self.pad_token: str | None = None
        self.rendered = self.encoded = 0

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        self.rendered += 1
        return self._tokenizer.apply_chat_template(conversation, **kwargs)

    def encode(self, text: str, **kwargs: Any) -> Any:
        self.encoded += 1
        return self._tokenizer.encode(text, **kwargs)


def conversations(turns: int) -> list[list[Message]]:
    """Of every turn of an episode, up to where the agent answers."""
    played, prompt = episode(turns), load_prompt("chat")
    return [
        prompt.messages(
            State(
                task=played.task,
                history=tuple(played.steps[:t]),
                observation=played.steps[t].observation,
            )
        )
        for t in range(turns)
    ]


def answers(count: int) -> list[str]:
    prompt = load_prompt("chat")
    return [
        prompt.action_text(Action(reason="find mug", command=f"take mug {k}")) for k in range(count)
    ]


def separately(messages: Sequence[Message], texts: Sequence[str]) -> list[list[int]]:
    """The ids of the conversation with each answer, by the definition."""
    return [
        encode(word_tokenizer(), [*messages, Message(role="assistant", content=text)]).ids
        for text in texts
    ]


def test_what_is_remembered_is_what_is_computed() -> None:
    counted = Counted()
    tokenizer = RememberingTokenizer(counted)
    texts = answers(4)
    costs = []
    for messages in conversations(6):
        before = counted.rendered
        prompt, branches = encode_answers(tokenizer, messages, texts)
        costs.append(counted.rendered - before)
        assert [prompt + branch for branch in branches] == separately(messages, texts)
        prompt.append(0)  # the caller's own
    assert costs[-1] == costs[-2] <= 4  # neither the episode's length nor the answers count
    rendered, encoded = counted.rendered, counted.encoded
    encode_answers(tokenizer, conversations(6)[5], texts)
    assert (counted.rendered, counted.encoded) == (rendered, encoded)


def test_an_answer_that_is_rendered_by_its_place_is_rendered_there() -> None:
    numbered = (
        "{% for m in messages %}{{ loop.index }} <|{{ m.role }}|>{{ m.content }} "
        "{{ loop.index }} <|end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ messages|length + 1 }} <|assistant|>{% endif %}"
    )
    tokenizer = Counted(numbered)
    texts = answers(3)
    for messages in conversations(3):
        prompt, branches = encode_answers(tokenizer, messages, texts)
        for text, branch in zip(texts, branches, strict=True):
            whole = [*messages, Message(role="assistant", content=text)]
            assert prompt + branch == encode(tokenizer, whole).ids


def test_memory_is_bounded_and_threads_may_share_it() -> None:
    tokenizer = RememberingTokenizer(Counted(), max_bytes=20_000)
    turns, texts = conversations(8), answers(3)
    expected = [separately(messages, texts) for messages in turns]

    def ask(k: int) -> None:
        prompt, branches = encode_answers(tokenizer, turns[k % 8], texts)
        assert [prompt + branch for branch in branches] == expected[k % 8]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(80)))
    for memory in (tokenizer._texts, tokenizer._ids):
        held = sum(sizeof(key) + sizeof(value) for key, value in memory._values.items())
        assert 0 < memory._bytes == held <= 20_000


def test_the_bound_is_what_it_takes_of_the_process() -> None:
    tokenizer = RememberingTokenizer(Counted(), max_bytes=MAX_BYTES // 8)
    tracemalloc.start()
    for k in range(4000):
        tokenizer.encode(f"{k} " + "go to shelf 1 " * 200)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert MAX_BYTES // 16 < tokenizer._ids._bytes <= MAX_BYTES // 8
    assert held < 1.5 * MAX_BYTES / 8


def test_what_is_larger_than_the_memory_leaves_the_rest_in_it() -> None:
    memory: Memory[str] = Memory(1000)
    memory.put("small", "x" * 100)
    memory.put("large", "x" * 1000)
    assert (memory.get("small"), memory.get("large")) == ("x" * 100, None)


def test_what_fails_is_not_remembered() -> None:
    tokenizer = RememberingTokenizer(Counted("{{ raise_exception('no') }}"))
    for _ in range(2):
        with pytest.raises(Exception, match="no"):
            encode(tokenizer, [Message(role="user", content="x")])
    assert not tokenizer._texts._values
