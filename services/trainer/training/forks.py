"""Rows that fork: an episode, and actions it did not take in states it was in.

The branches lie behind the episode in one row. The attention mask lets a branch see the episode up
to its state, and itself; its positions go on from there. So one forward pass gives Q(s, a) of every
turn and Q(s', a') of every next action, for the tokens of the episode and of the new answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentprm.encoding import Tokenizer, encode, encode_answers
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Action, Episode
from services.trainer.training.rows import action_row


@dataclass(frozen=True)
class Branch:
    """Tokens that see the first `at` tokens of the trunk, and each other."""

    ids: list[int]
    at: int


@dataclass(frozen=True)
class Fork:
    """Transitions of one episode.

    Transition k has Q(s, a) at token `ends[k]` of the row and Q(s', a') at `next_ends[k]`, which
    is None where the episode is over.
    """

    trunk: list[int]
    branches: list[Branch]
    ends: list[int]
    next_ends: list[int | None]

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch.ids) for branch in self.branches)

    @property
    def ids(self) -> list[int]:
        """The tokens of the row."""
        return self.trunk + [token for branch in self.branches for token in branch.ids]

    @property
    def position_ids(self) -> list[int]:
        """The place of each token in its conversation."""
        behind = (at for b in self.branches for at in range(b.at, b.at + len(b.ids)))
        return [*range(len(self.trunk)), *behind]

    def mask(self, width: int) -> Tensor:
        """Which tokens each token sees: booleans [width, width]. Padding sees itself."""
        sees = torch.eye(width, dtype=torch.bool)
        end = len(self.trunk)
        sees[:end, :end] = _causal(end)
        for branch in self.branches:
            start, end = end, end + len(branch.ids)
            sees[start:end, : branch.at] = True
            sees[start:end, start:end] = _causal(end - start)
        return sees


def episode_forks(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episode: Episode,
    next_actions: Mapping[int, Action],
    max_tokens: int,
) -> Iterator[Fork]:
    """The transitions that the episode played, `next_actions[t]` being a' in s_t.

    They are one row, or, where the prompt renders single states, one row each. The last turn is
    the end, whether the game was over or time was up. A transition of which one of the two
    conversations is longer than `max_tokens` is left out. An episode that was given up before its
    first turn has none.

    Raises:
        ValueError, TemplateError: as `agentprm.encoding.encode`.
    """
    if not episode.turns:
        return
    if prompt.append_only:
        fork = _whole(tokenizer, prompt, episode, next_actions, max_tokens)
        forks = iter([fork])
    else:
        forks = _turn_by_turn(tokenizer, prompt, episode, next_actions, max_tokens)
    yield from (fork for fork in forks if fork.ends)


def _whole(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episode: Episode,
    next_actions: Mapping[int, Action],
    max_tokens: int,
) -> Fork:
    """One row: the episode, and behind it those next actions that it did not take itself."""
    transcript = episode.transcript()
    encoded = encode(tokenizer, prompt.transcript(transcript.task, transcript.steps))
    last = len(episode.turns) - 1
    texts = {t: prompt.action_text(next_actions[t]) for t in range(episode.start + 1, last + 1)}
    # An answer's tokens are the same in every turn; the first is the shortest to render.
    first = prompt.messages(episode.state(0))
    answers = encode_answers(tokenizer, first, list(texts.values()))[1] if texts else []
    answer = dict(zip(texts, answers, strict=True))
    needed = 0
    ends: list[int] = []
    following: list[Branch | int | None] = []
    for t in range(episode.start, last + 1):
        end = reach = encoded.spans[t][1]
        after: Branch | int | None = None
        if t < last:
            start, taken = encoded.spans[t + 1]
            same = answer[t + 1] == encoded.ids[start:taken]
            after = taken - 1 if same else Branch(answer[t + 1], start)
            reach = start + len(answer[t + 1])
        if reach > max_tokens:
            continue
        needed = max(needed, after.at if isinstance(after, Branch) else reach)
        ends.append(end - 1)
        following.append(after)
    return _fork(encoded.ids[:needed], ends, following)


def _turn_by_turn(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episode: Episode,
    next_actions: Mapping[int, Action],
    max_tokens: int,
) -> Iterator[Fork]:
    """Nothing is shared by the prompts of two states: the branch is a conversation of its own."""
    last = len(episode.turns) - 1
    for t in range(episode.start, last + 1):
        trunk, _ = action_row(tokenizer, prompt, episode.state(t), episode.turns[t].action)
        after = None
        if t < last:
            ids, _ = action_row(tokenizer, prompt, episode.state(t + 1), next_actions[t + 1])
            after = Branch(ids, 0)
        if max(len(trunk), len(after.ids) if after else 0) <= max_tokens:
            yield _fork(trunk, [len(trunk) - 1], [after])


def _fork(trunk: list[int], ends: list[int], following: Sequence[Branch | int | None]) -> Fork:
    branches: list[Branch] = []
    next_ends: list[int | None] = []
    length = len(trunk)
    for after in following:
        if isinstance(after, Branch):
            branches.append(after)
            length += len(after.ids)
            next_ends.append(length - 1)
        else:
            next_ends.append(after)
    return Fork(trunk, branches, ends, next_ends)


def _causal(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).tril()
