"""A tokenizer that remembers: `agentprm.encoding` at the pace of serving.

`encode` renders a conversation once per message, so that it knows where each begins. While an
episode runs, all but the last of those texts have been rendered and tokenised before.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

MAX_BYTES = 64 * 2**20
"""Most that rendered texts take, with what they were rendered from; and most that token ids do,
with their texts. Hundreds of episodes side by side, and every tokenizer has its own."""

V = TypeVar("V")


class RememberingTokenizer:
    """A Hugging Face tokenizer, as far as the services use it. Any thread may call it."""

    def __init__(self, tokenizer: Any, max_bytes: int = MAX_BYTES) -> None:
        self._tokenizer = tokenizer
        self._texts: _Memory[str] = _Memory(max_bytes)
        self._ids: _Memory[array[int]] = _Memory(max_bytes)
        self.eos_token: str | None = tokenizer.eos_token
        self.pad_token: str | None = tokenizer.pad_token
        self.chat_template: Any = tokenizer.chat_template

    def __len__(self) -> int:
        return len(self._tokenizer)

    def get_vocab(self) -> dict[str, int]:
        """Token ids by token."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The conversation as text, or whatever else the tokenizer makes of it."""
        messages = tuple((message["role"], message["content"]) for message in conversation)

        def render() -> Any:
            return self._tokenizer.apply_chat_template(conversation, **kwargs)

        return self._texts.get((messages, *sorted(kwargs.items())), render)

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Token ids of a text, a new list each time."""

        def ids() -> array[int]:  # a ninth of what a list of numbers takes
            return array("I", self._tokenizer.encode(text, **kwargs))

        return list(self._ids.get((text, *sorted(kwargs.items())), ids))


class _Memory(Generic[V]):
    """Values up to so many bytes, keys included; what was not used for longest is forgotten."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, made where it is not known."""
        with self._lock:
            known = self._values.get(key)
            if known is not None:
                self._values.move_to_end(key)
                return known
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._bytes += _bytes(key) + _bytes(value)
            while self._bytes > self._capacity:
                old_key, old = self._values.popitem(last=False)
                self._bytes -= _bytes(old_key) + _bytes(old)
        return value


def _bytes(value: object) -> int:
    inner = value if isinstance(value, tuple) else ()
    return sys.getsizeof(value) + sum(map(_bytes, inner))
