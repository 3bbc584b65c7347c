"""The conversation with a world model: it is told a command, and answers what happens then.

The roles are those of the environment, so that any chat endpoint can be a world model: the user
gives commands, the assistant is the world. An answer has the observation, and a line each for the
commands that became possible and for those that are no longer, or a line that the task is done:

    You arrive at desk 1. On the desk 1, you see a mug 2.
    Now possible: examine desk 1; go to bed 1; take mug 2 from desk 1
    No longer possible: examine bed 1; go to desk 1

The changes say as much as the whole list, at a third of its length. Reasons are left out: the world
does not hear them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentprm.protocol import MAX_COMMAND, MAX_TEXT, Message, Turn

_SYSTEM = """\
You are a text world. You are told commands that a player gives. Answer with what the player sees \
then, and with lines `Now possible:` and `No longer possible:` for the commands that this changes, \
or the line `The task is done.` once it is."""
_ADDED = "\nNow possible: "
_REMOVED = "\nNo longer possible: "
_WON = "\nThe task is done."


@dataclass(frozen=True)
class Outcome:
    """What a command leads to. `admissible` are the commands possible then, sorted."""

    observation: str
    won: bool
    admissible: tuple[str, ...] = ()


def opening(task: str, observation: str) -> list[Message]:
    """The conversation before the first command; it ends with the first observation."""
    if task not in observation:
        observation = f"{observation}\n\nYour task is to: {task}"
    return [Message(role="system", content=_SYSTEM), Message(role="user", content=observation)]


def asked(conversation: Sequence[Message], command: str) -> list[Message]:
    """The conversation with a command to answer."""
    *before, last = conversation
    text = f"ACTION: {command}"
    if last.role == "user":  # the opening: some chat templates take no two user messages in a row
        return [*before, Message(role="user", content=f"{last.content}\n\n{text}")]
    return [*conversation, Message(role="user", content=text)]


def answered(conversation: Sequence[Message], command: str, answer: str) -> list[Message]:
    """The conversation with a command and its answer."""
    return [*asked(conversation, command), Message(role="assistant", content=answer)]


def conversation(
    task: str, turns: Sequence[Turn], observation: str, admissible: Iterable[str]
) -> list[Message]:
    """All that happened: `turns`, and what was seen and possible after the last of them."""
    seen = [*((turn.observation, turn.admissible) for turn in turns), (observation, admissible)]
    messages = opening(task, seen[0][0])
    for turn, (after, possible) in zip(turns, seen[1:], strict=True):
        outcome = Outcome(after, won=False, admissible=tuple(sorted(possible)))
        answer = outcome_text(outcome, turn.admissible)
        messages = answered(messages, turn.action.command, answer)
    return messages


def outcome_text(outcome: Outcome, before: Iterable[str]) -> str:
    """The answer that tells `outcome`, where the commands `before` were possible."""
    if outcome.won:
        return outcome.observation + _WON
    added = sorted(set(outcome.admissible) - set(before))
    removed = sorted(set(before) - set(outcome.admissible))
    return (
        outcome.observation
        + (_ADDED + "; ".join(added) if added else "")
        + (_REMOVED + "; ".join(removed) if removed else "")
    )


def read_outcome(text: str, before: Iterable[str]) -> Outcome:
    """What an answer tells, where the commands `before` were possible.

    Commands that are no longer possible but were not before, and the like, are passed over.
    """
    text, won, _ = text.partition(_WON)
    text, _, removed = text.partition(_REMOVED.rstrip())
    text, _, added = text.partition(_ADDED.rstrip())
    possible = () if won else (set(before) | _commands(added)) - _commands(removed)
    return Outcome(text[:MAX_TEXT], bool(won), tuple(sorted(possible)))


def _commands(line: str) -> set[str]:
    commands = (command.strip() for command in line.split(";"))
    return {command for command in commands if 0 < len(command) <= MAX_COMMAND}
