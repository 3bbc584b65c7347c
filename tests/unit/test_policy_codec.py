"""The policy's codec beside `agentprm.encoding.encode`, and what it keeps."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from agentprm.encoding import Encoded, encode
from agentprm.protocol import Message
from agentprm.service import ProblemError
from services.policy.engine import Sample
from services.policy.engine.codec import Codec
from tests.llama import llama_tokenizer
from tests.models import word_tokenizer

_PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_PLAIN = "<|{{ m.role }}|>{{ m.content }}<|end|>"


def each(message: str, *, before: str = "", behind: str = _PROMPT) -> str:
    return f"{before}{{% for m in messages %}}{message}{{% endfor %}}{behind}"


TEMPLATES = {
    "plain": each(_PLAIN),
    "trimmed": each("<|{{ m.role }}|>{{ m.content | trim }}<|end|>"),
    "numbered": each("{{ loop.index }} " + _PLAIN, behind="{{ messages|length + 1 }} " + _PROMPT),
    "numbered answers": each("<|{{ m.role }}|>{{ m.content }} {{ loop.index }}<|end|>"),
    "other from the eighth on": each("{% if loop.index > 7 %}late {% endif %}" + _PLAIN),
    "other in one place": each(_PLAIN + "{% if loop.index == 9 %}here{% endif %}"),
    "many are announced": each(_PLAIN, before="{% if messages|length > 8 %}many {% endif %}"),
    "the last of many is marked": each(
        _PLAIN + "{% if loop.last and loop.index > 8 %}now{% endif %}"
    ),
    "between messages": each(
        "{% if not loop.first %}a new line {% endif %}" + _PLAIN, behind="a new line " + _PROMPT
    ),
    "a system message of its own": each(
        _PLAIN, before="{% if messages[0].role != 'system' %}<|system|>act<|end|>{% endif %}"
    ),
    "the system message first": each(
        "{% if m.role != 'system' %}" + _PLAIN + "{% endif %}",
        before="{% for m in messages if m.role == 'system' %}{{ m.content }} {% endfor %}",
    ),
    "one turn for equal roles": each(
        "{% if loop.first or m.role != loop.previtem.role %}<|{{ m.role }}|>{% endif %}"
        "{{ m.content }}{% if loop.last or m.role != loop.nextitem.role %}<|end|>{% endif %}"
    ),
    "only in turn": each(
        "{% if not loop.first and m.role == loop.previtem.role %}"
        "{{ raise_exception('roles have to alternate') }}{% endif %}" + _PLAIN
    ),
    "old thoughts are dropped": each(
        "<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('think')[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>"
    ),
    "no header in a long one": each(
        _PLAIN,
        behind="{% if add_generation_prompt and messages|length < 9 %}<|assistant|>{% endif %}",
    ),
    "nothing behind an answer": each(
        "<|{{ m.role }}|>{{ m.content }}{% if m.role != 'assistant' %}<|end|>{% endif %}"
    ),
    "answers end where the next begins": each(
        "{% if not loop.first and loop.previtem.role == 'assistant' %}<|end|>{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}{% if m.role != 'assistant' %}<|end|>{% endif %}"
    ),
}
CONTENTS = ["go to cabinet 1", " look ", "You see a mug 1.\n", "", "think find\nACTION: go", "go"]


def conversations() -> list[tuple[Message, ...]]:
    """Of up to 16 messages: in turn, and with roles and contents as they fall."""
    rng = random.Random(0)
    found = []
    for length in range(1, 17):
        for wild in (False, True, True):
            roles = ["user" if k % 2 == 0 else "assistant" for k in range(length)]
            if wild:
                roles = rng.choices(["system", "user", "assistant"], [1, 4, 4], k=length)
            contents = rng.choices(CONTENTS, k=length)
            raw = zip(roles, contents, strict=True)
            found.append(tuple(Message.model_validate({"role": r, "content": c}) for r, c in raw))
    return found


def outcome(
    tokenizer: Any, messages: Sequence[Message], *, prompt: bool = True, tried: int = 10**6
) -> Encoded | None:
    """What `encode` makes of the messages, if anything: by the definition, where it renders every
    beginning of the conversation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentprm.rendering._TRIED", tried)
        try:
            return encode(tokenizer, messages, generation_prompt=prompt)
        except (TemplateError, ValueError):
            return None


@pytest.mark.parametrize("name", [*TEMPLATES, "llama"])
def test_any_conversation_is_encoded_as_training_does(name: str) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = TEMPLATES.get(name, tokenizer.chat_template)
    for messages in conversations():
        for prompt in (True, False):
            expected = outcome(tokenizer, messages, prompt=prompt)
            assert outcome(tokenizer, messages, prompt=prompt, tried=6) == expected
        expected = outcome(tokenizer, messages)
        codec = Codec(tokenizer, (), 10_000)  # it knows no earlier turn
        if expected is None:
            with pytest.raises(ProblemError) as raised:
                codec.prompt(messages)
            assert raised.value.problem.title == "Refused by the chat template"
        else:
            assert codec.prompt(messages) == expected.ids


@pytest.mark.parametrize("roles", [("user", "assistant"), ("user",)])
def test_a_long_conversation_is_rendered_a_few_times_whatever_its_length(
    roles: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = word_tokenizer()
    codec = Codec(tokenizer, (), 100_000)
    rendered, apply = 0, tokenizer.apply_chat_template

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal rendered
        text = apply(*args, **kwargs)
        rendered += len(text)
        return text

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    text = "You are in the middle of a room. " * 3
    messages = tuple(
        Message.model_validate({"role": roles[k % len(roles)], "content": f"{k} {text}"})
        for k in range(199)
    )
    for encoded in (codec.prompt, lambda m: encode(tokenizer, m, generation_prompt=True).ids):
        rendered = 0
        ids = encoded(messages)
        assert rendered < 4 * 200 * (len(text) + 30)
        whole = outcome(tokenizer, messages)
        assert whole is not None
        assert ids == whole.ids


def test_what_is_kept_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.policy.engine.codec.MAX_BYTES", 2**20)
    codec = Codec(word_tokenizer(), (), 100_000)
    tracemalloc.start()
    for k in range(40):
        text = f"{k} " + "go to cabinet 1, " * 5000
        first = (Message(role="user", content=text),)
        answer = Message(role="assistant", content=f"look {k}")
        codec.prompt(first)
        codec.prompt((*first, answer, Message(role="user", content=text)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2**20 < held < 2.5 * 2**20


def test_what_is_too_long_is_not_kept() -> None:
    codec = Codec(word_tokenizer(), (), 100)
    short = (Message(role="user", content="look"),)
    codec.prompt(short)
    with pytest.raises(ProblemError, match="the model takes 100"):
        codec.prompt((Message(role="user", content="go to cabinet 1, " * 100),))
    assert list(codec._prompts._values) == [(("user", "look"),)]


def sentencepiece_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """As Llama 2 has it: a space is a mark of the piece behind it, what is unknown is bytes."""
    marks = ["<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    bytes_ = [f"<0x{k:02X}>" for k in range(256)]
    vocabulary = {piece: k for k, piece in enumerate([*marks, *bytes_, *pieces])}
    model = models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": marks[2:]})
    fast.chat_template = TEMPLATES["plain"]
    return fast


def test_the_texts_of_tokens_joined_are_the_text() -> None:
    tokenizer = sentencepiece_tokenizer(["\u2581", "g", "o", "t", ".", "A"])
    codec = Codec(tokenizer, eos=(), max_length=100)
    ids = tokenizer.encode("go to  Ago .", add_special_tokens=False)
    assert len(ids) == len("go to  Ago .")
    assert codec.tokens(ids) == list("go to  Ago .")
    assert codec.tokens([]) == []
    # A character of three bytes is three tokens; what follows is whole again, as is a mark.
    parts = tokenizer.encode("t\u20ac o<|end|>g", add_special_tokens=False)
    replaced = ["\ufffd"] * 3
    assert codec.tokens(parts) == ["t", *replaced, " ", "o", "<|end|>", "g"]


def test_the_tokens_that_are_shown_are_those_of_the_text() -> None:
    """A stop text may begin within a token; where the limit cut an answer, all is its text."""
    tokenizer = sentencepiece_tokenizer(["\u2581", "g", "o", "t", ".", "A", "t."])
    codec = Codec(tokenizer, eos=(), max_length=100)

    def shown(answer: str, text: str, *, finished: bool = True) -> list[str]:
        ids = tokenizer.encode(answer, add_special_tokens=False)
        return codec.shown(Sample(text, ids, [0.0] * len(ids), 1, finished))

    assert shown("go<|end|>", "go") == ["g", "o"]
    assert shown("got\u20ac<|end|>", "got\u20ac") == ["g", "o", "t", *["\ufffd"] * 3]
    assert shown("go to", "go") == ["g", "o"]
    both = tokenizer.convert_tokens_to_ids(["g", "o", "t."])
    assert codec.shown(Sample("got", both, [0.0] * 3, 1, True)) == ["g", "o", "t."]
    assert shown("<|end|>", "") == []
    assert shown("go<|end|>", "go", finished=False) == ["g", "o", "<|end|>"]
