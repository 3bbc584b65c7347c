"""Episodes as a world model reads them: every turn a command and its outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentprm.encoding import Tokenizer, encode
from agentprm.protocol import Episode, Message
from agentprm.world import Outcome, answered, opening, outcome_text
from services.trainer.training.rows import NothingToTrainOnError, Row, shortened


@dataclass(frozen=True)
class Transition:
    """A command, what was told before it, the commands possible then, and its true outcome."""

    told: list[Message]
    command: str
    before: tuple[str, ...]
    outcome: Outcome


def transitions(episode: Episode) -> Iterator[Transition]:
    """The turns of an episode whose outcome is known in full.

    That of the last turn is where it won; what was possible after the step limit nobody recorded.
    """
    if not episode.turns:
        return
    told = opening(episode.game.task, episode.turns[0].observation)
    for t, turn in enumerate(episode.turns):
        if t + 1 < len(episode.turns):
            after = episode.turns[t + 1]
            outcome = Outcome(after.observation, False, tuple(sorted(after.admissible)))
        elif episode.won:
            outcome = Outcome(episode.final_observation, True)
        else:
            return
        command = turn.action.command
        yield Transition(told, command, turn.admissible, outcome)
        told = answered(told, command, outcome_text(outcome, turn.admissible))


def world_rows(tokenizer: Tokenizer, episodes: Sequence[Episode], max_tokens: int) -> list[Row]:
    """A row for each episode, whose spans are the outcomes; those beyond `max_tokens` are left out.

    Raises:
        NothingToTrainOnError: there is not one outcome.
        TemplateError: the chat template refuses a conversation.
    """
    rows = []
    for episode in episodes:
        found = list(transitions(episode))
        if not found:
            continue
        last = found[-1]
        whole = answered(last.told, last.command, outcome_text(last.outcome, last.before))
        encoded = encode(tokenizer, whole)
        row = Row(encoded.ids, encoded.spans, list(range(len(encoded.spans))))
        rows.append(shortened(row, max_tokens))
    rows = [row for row in rows if row.spans]
    if not rows:
        raise NothingToTrainOnError(
            f"no episode with an outcome within {max_tokens} tokens to train on"
        )
    return rows
