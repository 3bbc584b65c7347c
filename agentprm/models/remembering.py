"""A tokenizer that remembers: `agentprm.encoding` at the pace of serving, and of fits.

`encode` renders and tokenises a conversation message by message. While an episode runs, all but the
last of those texts have been before, and so have many of another episode of the game.
"""

from __future__ import annotations

from array import array
from typing import Any

from agentprm.models.memory import Memory

MAX_BYTES = 64 * 2**20
"""Most that rendered texts take, with what they were rendered from; and most that token ids do,
with their texts. Hundreds of episodes side by side, and every tokenizer has its own."""


class RememberingTokenizer:
    """A Hugging Face tokenizer, as far as services and fits use it. Any thread may call it."""

    def __init__(self, tokenizer: Any, max_bytes: int = MAX_BYTES) -> None:
        self._tokenizer = tokenizer
        self._texts: Memory[str] = Memory(max_bytes)
        self._ids: Memory[array[int]] = Memory(max_bytes)
        self.eos_token: str | None = tokenizer.eos_token
        self.pad_token: str | None = tokenizer.pad_token
        self.chat_template: Any = tokenizer.chat_template

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The conversation as text, or whatever else the tokenizer makes of it."""
        messages = tuple((message["role"], message["content"]) for message in conversation)
        key = (messages, *sorted(kwargs.items()))
        text = self._texts.get(key)
        if text is None:
            text = self._tokenizer.apply_chat_template(conversation, **kwargs)
            self._texts.put(key, text)
        return text

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Token ids of a text, a new list each time."""
        key = (text, *sorted(kwargs.items()))
        ids = self._ids.get(key)
        if ids is None:
            ids = array("I", self._tokenizer.encode(text, **kwargs))  # a ninth of a list's size
            self._ids.put(key, ids)
        return ids.tolist()
