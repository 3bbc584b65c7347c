"""Text to token ids and back, as `agentprm.encoding` defines it, at the pace of serving.

While an episode runs, its conversation grows by an answer and an observation; here only those are
rendered and tokenised.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from itertools import chain, pairwise
from typing import Any

from jinja2 import TemplateError

from agentprm.encoding import end_mark, up_to_end
from agentprm.models.memory import Memory
from agentprm.models.prefix_cache import common_length
from agentprm.protocol import Message
from agentprm.rendering import render, segments
from agentprm.service import ProblemError
from services.policy.engine import Prompt, Sample, require_room

MAX_BYTES = 64 * 2**20
"""Most that known conversations take, and most that known segments of text do: a few thousand
conversations, and some hundred thousand answers and observations."""
TRIED_MESSAGES = 6
"""Up to this length every conversation is rendered as a whole."""

_ASKED = (Message(role="user", content="x"),)
"""A short conversation."""
_Key = tuple[tuple[str, str], ...]
"""Roles and contents of a conversation: hashed and compared at the pace of strings."""


class Codec:
    """The ids of conversations and answers, and the text of sampled ids, for one tokenizer.

    `ends` are the tokens that end a turn: the checkpoint's end-of-sequence tokens and the mark
    that the chat template puts behind an answer. The model takes `max_length` tokens. Several
    threads may use it.

    Raises:
        ValueError: the tokenizer has no chat template, or it does not render answers verbatim.
    """

    def __init__(self, tokenizer: Any, eos: Collection[int], max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._prompts: Memory[tuple[str, array[int]]] = Memory(MAX_BYTES)
        self._segments: Memory[array[int]] = Memory(MAX_BYTES)
        self._header = self._render(_ASKED, prompt=True)
        self._before, self._after = self._frame()
        self._uniform = self._same_anywhere()
        self.ends = frozenset(eos) | end_mark(tokenizer, self._after)

    def prompt(self, messages: tuple[Message, ...]) -> list[int]:
        """The ids up to where the assistant's answer begins; equal to `encode`'s.

        Raises:
            ProblemError: 422, the chat template does not take these messages, or they leave the
                model no token to answer with. Nothing of them is kept.
        """
        key = tuple([(message.role, message.content) for message in messages])
        known = self._prompts.get(key)
        if known is None:
            try:
                text, ids = self._extended(messages, key) or self._from_scratch(messages)
            except (TemplateError, ValueError) as error:  # such as roles out of order
                raise ProblemError(422, "Refused by the chat template", str(error)) from error
            require_room(len(ids) + 1, self._max_length)
            known = text, array("I", ids)
            self._prompts.put(key, known)
        return known[1].tolist()

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of whole answers, each up to its first end-of-turn token."""
        found = self._encode([f"{self._before}{text}{self._after}" for text in texts])
        return [up_to_end(ids, self.ends) for ids in found]

    def opening(self, text: str) -> list[int]:
        """The ids that every answer beginning with `text` begins with.

        A white space at the end of `text` may belong to the token that follows, or to the one
        before: what all answers share is what a longer text leaves as it is.
        """
        if not text:
            return []
        ids, longer = self._encode([self._before + text, f"{self._before}{text}x"])
        return ids[: common_length(ids, longer)]

    def guess(self, prompt: Prompt, stops: Sequence[str]) -> list[int]:
        """The ids behind the opening that an answer would have if it repeated the one before.

        They end before one of `stops`, or the end of the turn. Without an answer before, none.
        """
        before = next((m.content for m in reversed(prompt.messages) if m.role == "assistant"), "")
        if not before.startswith(prompt.opening):
            return []
        opening = self.opening(prompt.opening)
        repeated = prompt.opening + cut(before[len(prompt.opening) :], stops)
        ids = self.answers([repeated])[0]
        if common_length(opening, ids) < len(opening):
            return []
        return [token for token in ids[len(opening) :] if token not in self.ends]

    def text(self, ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special ones."""
        return self._decode(ids, skip_special_tokens=True)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, special ones included; joined they are the text of all.

        Tokenizers such as SentencePiece's drop a space at the start of what they decode, so that a
        token is read behind the one before it. A part of a character is U+FFFD.
        """
        if not ids:
            return []
        alone = [self._decode([token]) for token in ids]
        pairs = [self._decode(pair) for pair in pairwise(ids)]
        behind = [
            own if "\ufffd" in own or not pair.startswith(before) else pair[len(before) :]
            for before, own, pair in zip(alone, alone[1:], pairs, strict=False)
        ]
        return [alone[0], *behind]

    def shown(self, sample: Sample) -> list[str]:
        """The text of each token that the sample's is made of: `tokens` without the end-of-turn
        mark and the stop text. A token that has the end of the one and the start of the other is
        among them, whole.
        """
        ids = sample.ids
        while sample.finished and ids and self.text(ids[:-1]).startswith(sample.text):
            ids = ids[:-1]
        return self.tokens(ids)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _from_scratch(self, messages: tuple[Message, ...]) -> tuple[str, list[int]]:
        found = segments(self._tokenizer, messages, generation_prompt=True)
        texts = [text for text, _ in found if text]
        return "".join(texts), [*chain.from_iterable(self._encode(texts))]

    def _extended(self, messages: tuple[Message, ...], key: _Key) -> tuple[str, list[int]] | None:
        """From the conversation of the turn before, where that is known."""
        if len(messages) < 3 or messages[-2].role != "assistant":
            return None
        earlier = self._prompts.get(key[:-2])
        if earlier is None:
            return None
        text, ids = earlier
        behind = self._behind(messages, text)
        answer = f"{self._before}{messages[-2].content}{self._after}"
        if not behind or not behind.startswith(answer):
            return None  # it is rendered otherwise than the one that `_frame` tried, or refused
        answer_ids, rest_ids = self._encode([answer, behind[len(answer) :]])
        return text + behind, [*ids, *answer_ids, *rest_ids]

    def _behind(self, messages: Sequence[Message], text: str) -> str:
        """What the last answer and the message after it add to `text`; nothing if they change it.

        Most templates render a turn the same wherever it stands. Where that was so in a probe, and
        in the first turns of every conversation, it is rendered behind a short one.
        """
        short = self._turn(messages[-2:])
        if self._uniform and len(messages) > TRIED_MESSAGES:
            return short
        whole = self._render(messages, prompt=True)
        if not whole.startswith(text):
            return ""
        self._uniform = self._uniform and whole[len(text) :] == short
        return whole[len(text) :]

    def _turn(self, messages: Sequence[Message]) -> str:
        """An answer and the message after it, as rendered behind a short conversation."""
        return self._render([*_ASKED, *messages], prompt=True)[len(self._header) :]

    def _same_anywhere(self) -> bool:
        """Whether a probe's turns are rendered as each is behind a short conversation."""
        turn = [Message(role="assistant", content="y"), Message(role="user", content="z")]
        try:
            whole = self._render([*_ASKED, *turn, *turn], prompt=True)
            return whole == self._header + 2 * self._turn(turn)
        except (TemplateError, ValueError):
            return False

    def _encode(self, texts: list[str]) -> list[list[int]]:
        known = {text: self._segments.get(text) for text in texts}
        found = {text: ids for text, ids in known.items() if ids is not None}
        missing = [text for text in known if text not in found]
        if missing:
            batch = self._tokenizer(
                missing,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            for text, ids in zip(missing, batch, strict=True):
                found[text] = array("I", ids)
                self._segments.put(text, found[text])
        return [found[text].tolist() for text in texts]

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        raw = [{"role": m.role, "content": m.content} for m in messages]
        return render(self._tokenizer, raw, generation_prompt=prompt)

    def _frame(self) -> tuple[str, str]:
        """What the template puts between the header and an answer, and behind an answer."""
        answer = "REASON: y\nACTION: z"
        header = self._header
        whole = self._render([*_ASKED, Message(role="assistant", content=answer)], prompt=False)
        if not whole.startswith(header) or answer not in whole[len(header) :]:
            raise ValueError("the chat template does not render the assistant's answer verbatim")
        before, _, after = whole[len(header) :].partition(answer)
        return before, after


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops` in it."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def stopper(codec: Codec, stops: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """Whether the tokens sampled so far end in, or contain at their end, one of `stops`."""
    window = max((len(stop.encode()) for stop in stops), default=0)

    def stopped(ids: Sequence[int]) -> bool:
        if not stops:
            return False
        tail = codec.text(ids[-window:])
        return any(stop in tail for stop in stops)

    return stopped
