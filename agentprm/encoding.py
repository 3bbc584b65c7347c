"""Conversations as token ids: one canonical encoding, shared by serving and training.

Each message is tokenised as its own segment of the rendered chat template. So the ids of a
conversation are a prefix of the ids of every conversation that extends it, which is what prefix
caches and scoring every turn in one pass rest on, whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from agentprm.protocol import Message
from agentprm.rendering import Template, render, segments


class Tokenizer(Template, Protocol):
    """The part of a Hugging Face tokenizer that is needed here."""

    eos_token: str | None
    pad_token: str | None

    def encode(self, text: str, **kwargs: Any) -> Any:
        """Token ids of a text."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids, and where in them the assistant's messages are.

    `spans[k]` is the half-open range of assistant message k, from its first content token to its
    end-of-turn mark. The header before it is left out, and so is the line end that templates such
    as Qwen's put behind the mark: no policy samples it. The PRM scores an action at the last token
    of its span; the policy is trained on the span.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


def encode(
    tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool = False
) -> Encoded:
    """Token ids and assistant spans of a conversation.

    With `generation_prompt` the ids end where the assistant's next message begins.

    Raises:
        ValueError, TemplateError: as `agentprm.rendering.segments`.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for text, answer in segments(tokenizer, messages, generation_prompt=generation_prompt):
        start = len(ids)
        if text:
            ids.extend(tokenizer.encode(text, add_special_tokens=False))
        if answer is not None:
            spans.append((start, _end_of_turn(tokenizer, ids, text, answer)))
    return Encoded(ids=ids, spans=spans)


def encode_answers(
    tokenizer: Tokenizer, messages: Sequence[Message], answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """The ids up to where the assistant answers, and for each answer the ids up to its end.

    Together they are what `encode` makes of the conversation with that answer, up to the end of its
    span; the conversation is rendered and tokenised once for all answers. That the template renders
    an answer behind this conversation as it does behind another is tried on the first one.

    Raises:
        ValueError: as `encode`.
    """
    prompt = encode(tokenizer, messages, generation_prompt=True).ids
    raw = [message.model_dump() for message in messages]
    before = render(tokenizer, raw, generation_prompt=True)

    def behind(question: Sequence[dict[str, str]], prompt: str, answer: str) -> str:
        text = render(tokenizer, [*question, {"role": "assistant", "content": answer}])
        if not text.startswith(prompt):
            raise ValueError("the tokenizer's chat template rewrites the prompt of an answer")
        return text[len(prompt) :]

    first = behind(raw, before, answers[0])
    short = [{"role": "user", "content": "?"}]
    header = render(tokenizer, short, generation_prompt=True)
    if behind(short, header, answers[0]) == first:
        raw, before = short, header
    texts = [first, *(behind(raw, before, answer) for answer in answers[1:])]

    def whole(text: str, answer: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids[: _end_of_turn(tokenizer, ids, text, answer)]

    return prompt, [whole(text, answer) for text, answer in zip(texts, answers, strict=True)]


def _end_of_turn(tokenizer: Tokenizer, ids: list[int], text: str, answer: str) -> int:
    """Where in `ids`, which end with those of `text`, the turn ends that `text` renders.

    That is before the white space behind the end-of-turn mark. Where a template has no mark but
    white space, or a tokenizer joins the two, it is the end.
    """
    space = text[len(text.rstrip()) :]
    if not space or text.strip() == answer.strip():
        return len(ids)
    behind = tokenizer.encode(space, add_special_tokens=False)
    return len(ids) - len(behind) if ids[-len(behind) :] == behind else len(ids)


def eos_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """The end-of-sequence tokens of the checkpoint's generation settings and of its tokenizer."""
    found: set[int] = set()
    for eos in (generation_config.eos_token_id, tokenizer.eos_token_id):
        found |= set(eos) if isinstance(eos, list) else set() if eos is None else {eos}
    return found


def end_mark(tokenizer: Any, behind: str) -> set[int]:
    """The first token of what a chat template puts `behind` an answer: it ends the turn.

    None where that is white space, which answers contain.
    """
    first = tokenizer.encode(behind, add_special_tokens=False)[:1] if behind else []
    return set(first) if tokenizer.decode(first).strip() else set()


def up_to_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """An answer's ids up to the first that ends a turn, which is one of them."""
    for k, token in enumerate(ids):
        if token in ends:
            return ids[: k + 1]
    return ids


def closed(tokenizer: Tokenizer, text: str) -> str:
    """A conversation that was rendered elsewhere, ended by the chat template's end-of-turn mark.

    Texts that come from a decoded sample end with an end token, with the template's own mark or,
    cut off, with nothing, and may be padded; what is scored is the end of an answer.
    """
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}
    end = render(tokenizer, [question, answer]).rpartition("ANSWER")[2]
    pad = tokenizer.pad_token or ""
    marks = [mark for mark in (end.strip(), tokenizer.eos_token, pad) if mark]
    start, stop = 0, len(text)
    while pad and text.startswith(pad, start):
        start += len(pad)
    while mark := _last_mark(text, start, stop, marks):
        stop -= mark
    return text[start:stop] + (end.rstrip() or end) if start < stop else ""


def answer_mark(tokenizer: Tokenizer) -> str:
    """What the chat template writes before every answer; empty where that cannot be told.

    It is what the prompt of an answer and the answer itself begin with alike: in one of them some
    templates have more, such as the beginning of a thought.
    """
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}
    asked = render(tokenizer, [question])
    prompt = render(tokenizer, [question], generation_prompt=True)
    answered = render(tokenizer, [question, answer]).rpartition("ANSWER")[0]
    if not (prompt.startswith(asked) and answered.startswith(asked)):
        return ""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, answered, strict=False))
    return "".join(char for char, _ in alike)[len(asked) :].strip()


def _last_mark(text: str, start: int, stop: int, marks: Sequence[str]) -> int:
    """The length of the mark that ends `text[start:stop]`, space after it included; else 0."""
    bare = stop
    while bare > start and text[bare - 1].isspace():
        bare -= 1
    found = (mark for mark in marks if text.endswith(mark, start, bare))
    return stop - bare + len(mark) if (mark := next(found, "")) else 0
