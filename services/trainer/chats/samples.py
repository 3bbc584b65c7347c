"""Chats as samples of Q: the tokens that the PRM service reads, and the targets of eq. 1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError

from agentprm.chats import Chat, ChatsError
from agentprm.config import Config
from agentprm.encoding import Tokenizer, encode
from agentprm.models.remembering import RememberingTokenizer
from services.trainer.seeds import derive
from services.trainer.targets.monte_carlo import (
    delimited,
    discounted_returns,
    mean_of_visits,
    split,
)
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.prm_facts import FittedOn
from services.trainer.training.prm_model import Sample, read_at
from services.trainer.training.rows import Row, shortened


@dataclass(frozen=True)
class ChatSamples:
    """The samples of a log, those of a task on one side."""

    training: list[Sample]
    validation: list[Sample]
    tasks: FittedOn
    left_out: int
    """Assistant messages that end beyond `prm.max_tokens`."""


def split_chats(base: Path, chats: Sequence[Chat], config: Config) -> ChatSamples:
    """The samples of chats for the model in `base`, by the settings and the split of a run.

    Raises:
        ChatsError: the model's chat template refuses a chat, or nothing is left to train on.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer, limit = load_tokenizer(base), config.prm.max_tokens
    targets = chat_targets(chats, config.gamma)
    seed = derive(config.seed, "split")
    sides = split([chat.task for chat in chats], config.prm.validation_fraction, seed)
    training, validation = (
        chat_samples(tokenizer, [chats[i] for i in side], [targets[i] for i in side], limit)
        for side in sides
    )
    if not training:
        raise ChatsError(
            f"no assistant message ends within the first {limit} tokens of its chat: raise "
            "prm.max_tokens, or shorten the chats"
        )
    tasks = FittedOn([], *([chats[i].task for i in side] for side in sides))
    kept = sum(len(sample.targets) for sample in (*training, *validation))
    return ChatSamples(training, validation, tasks, sum(map(len, targets)) - kept)


def chat_targets(chats: Sequence[Chat], gamma: float) -> list[list[float]]:
    """Q̂(s, a) of each assistant message: the mean, over all chats that came by, of the return.

    `[i][t]` is that of assistant message t of chat i. Two visits are of one (s, a) when the task
    and all messages up to this one agree to the letter. See `monte_carlo_targets`.
    """
    returns = [discounted_returns(chat.rewards, gamma) for chat in chats]
    return mean_of_visits([_visited(chat) for chat in chats], returns)


def chat_samples(
    tokenizer: Tokenizer,
    chats: Sequence[Chat],
    targets: Sequence[Sequence[float]],
    max_tokens: int,
) -> list[Sample]:
    """A sample of each chat; its assistant messages that end beyond `max_tokens` are left out.

    A chat of which nothing is left has none.

    Raises:
        ChatsError: the chat template refuses a chat.
    """
    tokenizer = RememberingTokenizer(tokenizer)  # attempts at a task begin alike
    return [
        Sample(row, read_at(row, "action"), [values[t] for t in row.turns], chat.outcome)
        for chat, values in zip(chats, targets, strict=True)
        if (row := chat_row(tokenizer, chat, max_tokens)).spans
    ]


def chat_row(tokenizer: Tokenizer, chat: Chat, max_tokens: int) -> Row:
    """A chat as the PRM service reads it, up to the last assistant message that fits.

    Raises:
        ChatsError: the chat template refuses it.
    """
    try:
        encoded = encode(tokenizer, chat.messages)
    except (TemplateError, ValueError) as error:
        raise ChatsError(
            f"{chat.source}: the model's chat template does not take it: {error}. The PRM service "
            "would refuse it as well: change the messages, or give a model with another template"
        ) from error
    return shortened(Row(encoded.ids, encoded.spans, [*range(len(encoded.spans))]), max_tokens)


def _visited(chat: Chat) -> list[bytes]:
    """A name for each assistant message with all that came before it."""
    digest = hashlib.sha256(delimited(chat.task))
    names = []
    for message in chat.messages:
        digest.update(delimited(message.role) + delimited(message.content))
        if message.role == "assistant":
            names.append(digest.digest())
    return names
