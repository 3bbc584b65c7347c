"""Where an action begins and ends among the tokens of a conversation.

The chat templates are those of published models, as TRL ships them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import trl

from agentprm.encoding import answer_mark, encode, encode_answers, eos_tokens
from agentprm.protocol import Message
from tests.llama import llama_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MESSAGES = [
    Message(role="system", content="You play."),
    Message(role="user", content="Find a mug."),
    Message(role="assistant", content="REASON: look\nACTION: go to cabinet 1"),
    Message(role="user", content="Nothing happens."),
    Message(role="assistant", content="go to shelf 1 \n"),
]


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("qwen2_5", "<|im_end|>"),
        ("qwen3_instruct_2507", "<|im_end|>"),
        ("lfm2", "<|im_end|>"),
        ("gemma3", "<end_of_turn>"),
        ("llama3_2", "<|eot_id|>"),
    ],
)
def test_a_span_ends_with_the_mark_that_the_policy_gives(name: str, mark: str) -> None:
    """The line end behind it is of the conversation, and of no action."""
    tokenizer = llama_tokenizer()
    marks = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    encoded = encode(tokenizer, MESSAGES)
    raw = [message.model_dump() for message in MESSAGES]
    whole = tokenizer.apply_chat_template(raw, tokenize=False, date_string="26 Jul 2024")
    assert tokenizer.decode(encoded.ids) == whole
    answers = [tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.spans]
    assert [answer.rstrip() for answer in answers] == answers
    assert answers[0] == f"{MESSAGES[2].content}{mark}"
    assert answers[1].startswith("go to shelf 1")
    assert answers[1].endswith(mark)
    prompt, (found,) = encode_answers(tokenizer, MESSAGES[:-1], [MESSAGES[-1].content])
    assert prompt + found == encoded.ids[: encoded.spans[-1][1]]
    assert encoded.spans[-1][0] == len(prompt)


def test_without_a_mark_the_line_end_ends_the_turn() -> None:
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = encode(tokenizer, MESSAGES)
    texts = [tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.spans]
    assert texts == [f"{MESSAGES[2].content}\n", "go to shelf 1\n"]


@pytest.mark.parametrize(
    ("of_model", "of_tokenizer", "ends"),
    [(None, None, set()), (None, 2, {2}), (3, 2, {2, 3}), ([3, 4], 4, {3, 4})],
)
def test_the_end_tokens_are_those_that_are_named(
    of_model: int | list[int] | None, of_tokenizer: int | None, ends: set[int]
) -> None:
    model = SimpleNamespace(eos_token_id=of_model)
    assert eos_tokens(model, SimpleNamespace(eos_token_id=of_tokenizer)) == ends


def test_an_answer_to_nothing_is_refused_in_words() -> None:
    tokenizer = llama_tokenizer()
    with pytest.raises(ValueError, match="a user message has to come before"):
        encode(tokenizer, MESSAGES[2:])
    with pytest.raises(ValueError, match="a user message has to come before"):
        encode_answers(tokenizer, MESSAGES[2:3], ["look"])


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("qwen2_5", "<|im_start|>assistant"),
        ("qwen3", "<|im_start|>assistant"),
        ("deepseekv3", "<｜Assistant｜>"),
        ("gemma3", "<start_of_turn>model"),
        ("llama3_2", "<|start_header_id|>assistant<|end_header_id|>"),
    ],
)
def test_what_stands_before_every_answer(name: str, mark: str) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    assert answer_mark(tokenizer) == mark
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert answer_mark(tokenizer) == ""
