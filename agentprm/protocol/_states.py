"""States, actions and messages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentprm.protocol._base import MAX_COMMANDS, MAX_STEPS, Command, Request, Text


class Action(Request):
    """REASON and ACTION. An empty command is what a badly formatted answer becomes."""

    reason: Text = ""
    command: Command = ""


class Step(Request):
    """One past turn: what was seen, what was done."""

    observation: Text
    action: Action


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
