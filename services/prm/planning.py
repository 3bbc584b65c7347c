"""The rows that answer a request for scores, and where in them each of its numbers is.

A causal model knows Q for every turn of an episode after one forward pass, and for many actions in
one state after one pass over the state: the actions lie one after the other behind it in a single
row, and the attention mask lets each see the state and itself, never its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from jinja2 import TemplateError

from agentprm.encoding import answer_mark, closed, encode, encode_answers
from agentprm.models.remembering import RememberingTokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import (
    CONTEXT_TOO_LONG,
    Action,
    Message,
    ScoreRequest,
    ScoreResponse,
    State,
    Transcript,
)
from agentprm.service import ProblemError
from services.prm.packing import Row, fork_row

PACKED_TOKENS = 2048
"""Most tokens of actions behind one state: their mask takes this times the length of the row."""

REFUSED = "Refused by the chat template"

Place = tuple[int, int]
"""Where a number of the answer is computed: its row, and which of the row's numbers it is."""


@dataclass
class Plan:
    """The rows of a request, and for each number of its answer the row and the place in it."""

    rows: list[Row] = field(default_factory=list)
    pairs: list[Place] = field(default_factory=list)
    choices: list[list[Place]] = field(default_factory=list)
    transcripts: list[list[Place]] = field(default_factory=list)
    conversations: list[list[Place]] = field(default_factory=list)
    continuations: list[list[Place]] = field(default_factory=list)
    texts: list[Place] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return sum(map(len, self.rows))

    def answer(
        self, scores: Sequence[Sequence[float]], *, version: str, template_hash: str
    ) -> ScoreResponse:
        """The answer to the request, where `scores[row][k]` are the numbers of the rows."""

        def at(places: Sequence[Place]) -> list[float]:
            return [scores[row][k] for row, k in places]

        return ScoreResponse(
            conversations=[at(places) for places in self.conversations],
            choices=[at(places) for places in self.choices],
            pairs=at(self.pairs),
            transcripts=[at(places) for places in self.transcripts],
            continuations=[at(places) for places in self.continuations],
            texts=at(self.texts),
            prm_version=version,
            template_hash=template_hash,
        )

    def add(self, row: Row) -> list[Place]:
        """Take up a row; the places of its numbers."""
        self.rows.append(row)
        return [(len(self.rows) - 1, k) for k in range(len(row.ends))]


_Asked = tuple[int, str]
"""An answer that is scored, and the number of the conversation before it."""


class _Forks:
    """The answers to conversations that are scored, equal ones once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Message, ...], int] = {}
        self._texts: list[dict[str, None]] = []

    def add(self, messages: Sequence[Message], texts: Sequence[str]) -> list[_Asked]:
        """Take up answers to a conversation; what their places are known by."""
        number = self._numbers.setdefault(tuple(messages), len(self._texts))
        if number == len(self._texts):
            self._texts.append({})
        self._texts[number].update(dict.fromkeys(texts))
        return [(number, text) for text in texts]

    def __iter__(self) -> Iterator[tuple[int, Sequence[Message], list[str]]]:
        """Number, messages and answers of each conversation."""
        for messages, number in self._numbers.items():
            yield number, messages, list(self._texts[number])


class Planner:
    """Plans the rows of requests: it knows a checkpoint's tokenizer, prompt and limits."""

    def __init__(
        self, prompt: PromptTemplate, tokenizer: Any, max_tokens: int | None, *, packs: bool
    ) -> None:
        self.prompt = prompt
        self.tokenizer = RememberingTokenizer(tokenizer)
        self.max_tokens = max_tokens
        self._packs = packs

    def plan(self, request: ScoreRequest) -> Plan:
        """Rows for a request. Equal states share a row, equal actions in them a branch.

        Raises:
            ProblemError: 422, something is longer than the model can read or holds nothing to
                score, or the checkpoint's chat template does not take a conversation.
        """
        plan, forks = Plan(), _Forks()

        def ask(state: State, actions: Iterable[Action]) -> list[_Asked]:
            texts = [self.prompt.action_text(action) for action in actions]
            return forks.add(self.prompt.messages(state), texts)

        pairs = [ask(pair.state, [pair.action]) for pair in request.pairs]
        choices = [ask(choice.state, choice.actions) for choice in request.choices]
        continuations = [
            forks.add([message.plain() for message in each.messages], each.answers)
            for each in request.continuations
        ]
        episodes: list[list[_Asked]] = []
        for k, transcript in enumerate(request.transcripts):
            if self.prompt.append_only:
                played = self.prompt.transcript(transcript.task, transcript.steps)
                plan.transcripts.append(plan.add(self._conversation(played, f"transcripts.{k}")))
            else:
                turns = (ask(state, [action]) for state, action in _visits(transcript))
                episodes.append([*chain.from_iterable(turns)])
        for k, conversation in enumerate(request.conversations):
            row = self._conversation(conversation.plain(), f"conversations.{k}")
            plan.conversations.append(plan.add(row))
        for k, text in enumerate(request.texts):
            plan.texts += plan.add(self._text(text, f"texts.{k}"))
        places: dict[_Asked, Place] = {}
        for number, messages, texts in forks:
            for some, row in self._fork(messages, texts):
                places |= {(number, text): (len(plan.rows), k) for k, text in enumerate(some)}
                plan.rows.append(row)
        plan.pairs = [places[asked] for (asked,) in pairs]
        plan.choices = [[places[asked] for asked in each] for each in choices]
        plan.continuations = [[places[asked] for asked in each] for each in continuations]
        plan.transcripts += [[places[asked] for asked in each] for each in episodes]
        return plan

    @cached_property
    def _mark(self) -> str:
        return answer_mark(self.tokenizer)

    def _conversation(self, messages: Sequence[Message], name: str) -> Row:
        try:
            return self._row(messages, name)
        except (ValueError, TemplateError) as error:
            detail = f"{name}: {error}"
            raise ProblemError(422, REFUSED, detail) from error

    def _row(self, messages: Sequence[Message], name: str) -> Row:
        encoded = encode(self.tokenizer, messages)
        self._fits(len(encoded.ids), name)
        return Row(encoded.ids, [end - 1 for _, end in encoded.spans], trunk=len(encoded.ids))

    def _text(self, text: str, name: str) -> Row:
        ids = self.tokenizer.encode(closed(self.tokenizer, text), add_special_tokens=False)
        if not ids:
            raise ProblemError(422, "Empty", f"{name} holds nothing to score")
        if self._mark not in text:
            detail = f"{name} holds no answer: the chat template begins one by {self._mark!r}"
            raise ProblemError(422, "No answer", detail)
        self._fits(len(ids), name)
        return Row(ids, [len(ids) - 1], trunk=len(ids))

    def _fork(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> Iterator[tuple[list[str], Row]]:
        """The actions of one state, as many in a row as `PACKED_TOKENS` allows."""
        try:
            trunk, branches = encode_answers(self.tokenizer, messages, texts)
        except (TemplateError, ValueError) as error:  # roles in an order it does not know, say
            raise ProblemError(422, REFUSED, str(error)) from error
        if not all(branches):
            raise ProblemError(422, "Nothing to score", "the chat template renders no answer")
        self._fits(len(trunk) + max(map(len, branches)), "a state with an action")
        limit = PACKED_TOKENS if self._packs else 0
        group: list[int] = []
        tokens = 0
        for k, ids in enumerate(branches):
            if group and tokens + len(ids) > limit:
                yield [texts[j] for j in group], fork_row(trunk, [branches[j] for j in group])
                group, tokens = [], 0
            group.append(k)
            tokens += len(ids)
        yield [texts[j] for j in group], fork_row(trunk, [branches[j] for j in group])

    def _fits(self, tokens: int, what: str) -> None:
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise ProblemError(
                422,
                CONTEXT_TOO_LONG,
                f"{what} is {tokens} tokens, the model reads {self.max_tokens}",
            )


def _visits(transcript: Transcript) -> Iterator[tuple[State, Action]]:
    """s_t and a_t of every turn."""
    steps = tuple(transcript.steps)
    for t, step in enumerate(steps):
        state = State(
            task=transcript.task,
            history=steps[:t],
            observation=step.observation,
            admissible=transcript.admissible[t] if transcript.admissible else (),
        )
        yield state, step.action
