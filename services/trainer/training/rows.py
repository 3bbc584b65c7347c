"""Episodes as token rows: what one forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentprm.encoding import Tokenizer, encode, encode_answers
from agentprm.models.remembering import RememberingTokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Action, Episode, Message, State


class NothingToTrainOnError(ValueError):
    """Of what was played nothing can be read by a fit."""


@dataclass(frozen=True)
class Row:
    """Token ids in which action `turns[k]` of the episode is the half-open range `spans[k]`.

    With `only_spans` nothing else of the row is to be trained on.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    turns: list[int]
    only_spans: bool = False


def episode_rows(
    tokenizer: Tokenizer, prompt: PromptTemplate, episode: Episode, max_tokens: int, hint: str = ""
) -> list[Row]:
    """The episode as one row, or, where the prompt renders single states, one row a turn.

    Turns before the episode's start are read but are none of `turns`. Turns that end beyond
    `max_tokens` are left out; a row without a turn is not returned, nor is any of an episode that
    was given up before its first. The `hint` that an episode was played with is read only where it
    is given here.

    Raises:
        ValueError, TemplateError: as `agentprm.encoding.encode`.
    """
    played = range(episode.start, len(episode.turns))
    if not played:
        return []
    if prompt.append_only:
        transcript = episode.transcript()
        encoded = encode(tokenizer, prompt.transcript(transcript.task, transcript.steps, hint))
        rows = [Row(encoded.ids, encoded.spans[episode.start :], list(played))]
    else:
        rows = []
        for t in played:
            state, action = episode.state(t), episode.turns[t].action
            ids, span = action_row(tokenizer, prompt, state, action, hint)
            rows.append(Row(ids, [span], [t]))
    return [short for row in rows if (short := shortened(row, max_tokens)).spans]


def action_row(
    tokenizer: Tokenizer, prompt: PromptTemplate, state: State, action: Action, hint: str = ""
) -> tuple[list[int], tuple[int, int]]:
    """The ids of `state` with `action` as the answer, and the answer's span, which ends the ids.

    Raises:
        ValueError, TemplateError: as `agentprm.encoding.encode`.
    """
    answer = Message(role="assistant", content=prompt.action_text(action))
    encoded = encode(tokenizer, [*prompt.messages(state, hint), answer])
    start, end = encoded.spans[-1]
    return encoded.ids[:end], (start, end)


def answer_rows(
    tokenizer: Tokenizer, prompt: PromptTemplate, state: State, actions: Sequence[Action]
) -> tuple[list[int], list[list[int]]]:
    """The ids of `state`, and of each of `actions` those that follow: together `action_row`'s.

    The conversation is tokenised once for all of them: where they come as the policy is fitted,
    its processes wait for that.

    Raises:
        ValueError, TemplateError: as `agentprm.encoding.encode`.
    """
    answers = [prompt.action_text(action) for action in actions]
    return encode_answers(tokenizer, prompt.messages(state), answers)


def all_rows(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episodes: Sequence[Episode],
    max_tokens: int,
    hints: Sequence[str] | None = None,
) -> list[tuple[int, Row]]:
    """The rows of all episodes, each with the index of its episode; `hints[i]` is for episode i.

    There may be none, where no turn ends within `max_tokens` (see `require_rows`).

    Raises:
        ValueError, TemplateError: as `agentprm.encoding.encode`.
    """
    tokenizer = RememberingTokenizer(tokenizer)  # episodes of a game say the same time and again
    return [
        (i, row)
        for i, (episode, hint) in enumerate(
            zip(episodes, hints or [""] * len(episodes), strict=True)
        )
        for row in episode_rows(tokenizer, prompt, episode, max_tokens, hint)
    ]


def require_rows(rows: Sequence[object], episodes: Sequence[Episode], max_tokens: int) -> None:
    """See that a fit has something to train on: `rows` are what it reads of `episodes`.

    Raises:
        NothingToTrainOnError: there is not one row.
    """
    if not rows:
        raise NothingToTrainOnError(
            f"none of {len(episodes)} episodes has a turn that ends within {max_tokens} tokens: "
            "raise max_tokens of the fit, or take a model whose tokens are longer"
        )


def shortened(row: Row, max_tokens: int) -> Row:
    """The row without the turns that end beyond `max_tokens`."""
    kept = sum(end <= max_tokens for _, end in row.spans)
    if kept == 0:
        return Row([], [], [])
    return Row(row.ids[: row.spans[kept - 1][1]], row.spans[:kept], row.turns[:kept])
