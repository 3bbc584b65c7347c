"""Conversations as text: what a chat template makes of them, segment by segment.

A segment is what one more message adds to the text, or the header of an answer. To see where it
begins one has to render all that comes before it, which for a long conversation takes longer than
everything else. Most templates render a message the same wherever it stands. So all but the first
segments are rendered behind a short conversation, and where together they are not what the template
makes of the whole, behind the messages that come before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, Protocol

from jinja2 import TemplateError

from agentprm.protocol import Message

_TODAY = {"%-d": "26", "%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024"}
"""What a chat template is told today is, by the codes of `strftime`. Templates such as Llama 3.2's
write the date into the system message; with the real one a checkpoint would read other tokens every
day than those it was trained on. This is the date that Llama's own template falls back to.
"""
_TRIED = 6
"""So many segments are always rendered behind the messages that come before them."""

_Raw = Sequence[dict[str, str]]
_ASKED = [{"role": "user", "content": "x"}]
_ANSWERED = [*_ASKED, {"role": "assistant", "content": "y"}]


class Template(Protocol):
    """The part of a Hugging Face tokenizer that renders."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render messages as text."""


def render(tokenizer: Template, messages: _Raw, *, generation_prompt: bool = False) -> str:
    """The conversation as text, the same on every day (see `_TODAY`).

    With `generation_prompt` it ends where the assistant's next message begins.
    """
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=generation_prompt,
        chat_template=_undated(tokenizer.chat_template),
    )
    return text


def segments(
    tokenizer: Template, messages: Sequence[Message], *, generation_prompt: bool = False
) -> list[tuple[str, str | None]]:
    """The conversation in segments of text, each with the content of the answer that it renders.

    With `generation_prompt` they end where the assistant's next message begins.

    Raises:
        ValueError: the first message is an answer, or the chat template rewrites earlier messages
            when later ones arrive.
        TemplateError: the chat template refuses the messages.
    """
    if messages and messages[0].role == "assistant":  # transformers renders no empty conversation
        raise ValueError("a user message has to come before the first assistant message")
    raw = [{"role": message.role, "content": message.content} for message in messages]
    ends: list[tuple[int, bool]] = []
    """Of each segment the messages up to its end, and whether there an answer is asked for."""
    for k, message in enumerate(messages):
        if message.role == "assistant":
            ends += [(k, True), (k + 1, False)]
        elif k + 1 < len(messages) and messages[k + 1].role != "assistant":
            ends.append((k + 1, False))
    # The last message and the header of the answer are one segment, as they will be once the
    # answer is part of the conversation: else the ids would not be a prefix of the later ones.
    ends = list(dict.fromkeys([*ends, (len(raw), generation_prompt)]))
    texts = _behind_the_same(tokenizer, raw, ends[:_TRIED])
    if len(ends) > _TRIED:
        texts += _behind_short_ones(tokenizer, raw, ends[_TRIED - 1 :])
        # Where a header ends only a text that asks for an answer tells: the last one is tried too.
        asking = [end for end in ends if end[1]]
        tried = list(dict.fromkeys([*asking[-1:], ends[-1]]))
        wholes = [render(tokenizer, raw[:end], generation_prompt=asks) for end, asks in tried]
        joined = dict(zip(ends, accumulate(texts), strict=False))
        if [joined.get(end) for end in tried] != wholes:
            texts = _behind_the_same(tokenizer, raw, ends)
    answers = {
        k: message.content for k, message in enumerate(messages, 1) if message.role == "assistant"
    }
    return [
        (text, None if asks else answers.get(end))
        for text, (end, asks) in zip(texts, ends, strict=True)
    ]


def _behind_the_same(tokenizer: Template, raw: _Raw, ends: Sequence[tuple[int, bool]]) -> list[str]:
    """What each beginning of the conversation adds to the text of the one before."""
    texts: list[str] = []
    before = ""
    for end, asks in ends:
        text = render(tokenizer, raw[:end], generation_prompt=asks)
        if not text.startswith(before):
            raise ValueError(
                "the tokenizer's chat template rewrites earlier messages; an append-only "
                "conversation cannot be cached or scored turn by turn with it"
            )
        texts.append(text[len(before) :])
        before = text
    return texts


def _behind_short_ones(
    tokenizer: Template, raw: _Raw, ends: Sequence[tuple[int, bool]]
) -> list[str]:
    """What each end but the first adds, found by short conversations; fewer where that fails.

    Whether it adds that to this one is for the caller to see.
    """

    @cache
    def short(answered: bool, asks: bool) -> str:
        return render(tokenizer, _ANSWERED if answered else _ASKED, generation_prompt=asks)

    texts: list[str] = []
    try:
        for (begin, asked), (end, asks) in pairwise(ends):
            answered = not asked and raw[begin - 1]["role"] == "assistant"
            before = short(answered, asked)
            more = [*(_ANSWERED if answered else _ASKED), *raw[begin:end]]
            text = render(tokenizer, more, generation_prompt=asks)
            if not text.startswith(before):
                break
            texts.append(text[len(before) :])
    except TemplateError:  # such as roles out of order
        pass
    return texts


def _undated(template: Any) -> str | None:
    """The template, with a function of its own in place of the one that knows the date.

    None, which leaves the choice to the tokenizer, where it has none or several.
    """
    if not isinstance(template, str):
        return None
    if "strftime_now" not in template:
        return template
    date = "format" + "".join(f" | replace('{code}', '{text}')" for code, text in _TODAY.items())
    macro = "{% macro strftime_now(format) %}{{ " + date + " }}{% endmacro %}{{ '' }}"
    return macro + template
