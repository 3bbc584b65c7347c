"""States, actions and messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from agentprm.protocol._base import MAX_COMMANDS, MAX_STEPS, Command, Request, Text


class Action(Request):
    """REASON and ACTION. An empty command is what a badly formatted answer becomes."""

    reason: Text = ""
    command: Command = ""


def _of_command(value: Any) -> Any:
    return {"command": value} if isinstance(value, str) else value


Asked = Annotated[Action, BeforeValidator(_of_command, json_schema_input_type=Action | Command)]
"""An action in a request; a string is a command without a reason."""


class Step(Request):
    """One past turn: what was seen, what was done."""

    observation: Text
    action: Asked


class State(Request):
    """s_t. `admissible` lists the commands possible now; empty where the environment cannot say."""

    task: Text
    history: tuple[Step, ...] = Field(default=(), max_length=MAX_STEPS, fail_fast=True)
    observation: Text
    admissible: tuple[Command, ...] = Field(default=(), max_length=MAX_COMMANDS, fail_fast=True)


class Message(Request):
    """One message of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str
