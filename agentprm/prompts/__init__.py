"""How a state becomes messages, and an action becomes text and back.

Two formats. `chat`: the episode is an append-only conversation, so a prefix cache serves every
earlier turn and one forward pass scores every turn. `state`: one prompt per state, with the history
and the candidate actions inside. Both are Jinja2 files with the variables `mode`, `task`,
`observation_action_history`, `observation`, `candidate_actions`, `reason` and `action`; a path to
another file of that kind may be given in place of a name. An entry of the history is a dictionary
with `observation` and `action`, in this order and nothing else, for templates may print it as it
is. White space around what a template gives is dropped: chat templates differ in whether they do.

A hint is text for the policy alone: it ends the user's first message, as a paragraph of its own,
whatever the template. So the hash of the template names how a state is rendered in training, where
there are no hints, and a sample tells its hint beside it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment

from agentprm.protocol import MAX_COMMAND, MAX_TEXT, Action, Message, State, Step

_HERE = Path(__file__).parent
_REMEMBERED = 2000
"""Characters of the longest messages that are remembered: with them it is 64 MiB at most."""
_REASON_ACTION = re.compile(
    r"\A\s*REASON:(?P<reason>.*?)^ACTION:\s*(?P<command>[^\n]*)", re.S | re.M
)
"""One way alone to match any white space: several would take cubic time on a text full of it."""


@dataclass(frozen=True)
class PromptTemplate:
    """A template. `append_only`: the messages of a later state extend those of an earlier one."""

    source: str
    append_only: bool
    _template: Template = field(init=False, repr=False, compare=False)
    _known: Callable[..., str] = field(init=False, repr=False, compare=False)
    """`_render` with a memory, for short messages."""

    def __post_init__(self) -> None:
        environment = SandboxedEnvironment(undefined=StrictUndefined)
        object.__setattr__(self, "_template", environment.from_string(self.source))
        object.__setattr__(self, "_known", lru_cache(maxsize=4096)(self._render))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name this template in every sample."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:12]

    def messages(self, state: State, hint: str = "") -> list[Message]:
        """The conversation up to the point where the agent answers in `state`."""
        if not self.append_only:
            history = [
                {"observation": s.observation, "action": s.action.command} for s in state.history
            ]
            content = self._render(
                "input",
                task=state.task,
                observation=state.observation,
                observation_action_history=history,
                candidate_actions=list(state.admissible),
            )
            return [Message(role="user", content=_hinted(content, hint))]
        messages = self.transcript(state.task, state.history, hint)
        if state.history:
            return [*messages, self._observed(state.task, state.observation)]
        return [*messages, self._first(state.task, state.observation, hint)]

    def transcript(
        self, task: str, steps: tuple[Step, ...] | list[Step], hint: str = ""
    ) -> list[Message]:
        """A whole episode as one conversation, each assistant message an action (`chat` only)."""
        if not self.append_only:
            raise ValueError("only an append-only prompt renders an episode as one conversation")
        messages = [Message(role="system", content=self._message("system", task=task))]
        for t, step in enumerate(steps):
            messages.append(
                self._observed(task, step.observation)
                if t
                else self._first(task, step.observation, hint)
            )
            messages.append(Message(role="assistant", content=self.action_text(step.action)))
        return messages

    def action_text(self, action: Action) -> str:
        """The assistant's message for `action`."""
        return self._message("output", reason=action.reason, action=action.command)

    def _first(self, task: str, observation: str, hint: str) -> Message:
        content = self._message("first", task=task, observation=observation)
        return Message(role="user", content=_hinted(content, hint))

    def _observed(self, task: str, observation: str) -> Message:
        content = self._message("observation", task=task, observation=observation)
        return Message(role="user", content=content)

    def _message(self, mode: str, **variables: str) -> str:
        """One message; an episode's earlier ones come again with every turn."""
        short = sum(map(len, variables.values())) <= _REMEMBERED
        return self._known(mode, **variables) if short else self._render(mode, **variables)

    def _render(self, mode: str, **variables: object) -> str:
        defaults = {
            "task": "",
            "observation": "",
            "observation_action_history": [],
            "candidate_actions": [],
            "reason": "",
            "action": "",
        }
        return self._template.render({**defaults, **variables, "mode": mode}).strip()


def _hinted(content: str, hint: str) -> str:
    return f"{content}\n\n{hint}" if hint else content


def load_prompt(name_or_path: str = "chat") -> PromptTemplate:
    """The prompt of that name, or of that path.

    A file that knows the mode `observation` is append-only, any other renders a state at a time.

    Raises:
        FileNotFoundError: there is neither such a name nor such a file.
    """
    path = _HERE / f"{name_or_path}.j2" if name_or_path in ("chat", "state") else Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no prompt template {name_or_path!r}: give `chat`, `state` or a path"
        )
    source = path.read_text(encoding="utf-8")
    return PromptTemplate(
        source=source, append_only=bool(re.search(r"mode\s*==\s*[\"']observation[\"']", source))
    )


def parse_action(text: str) -> tuple[Action, bool]:
    """REASON and ACTION of the policy's text, and whether it was well formed.

    Each follows its mark on the same line or on the next.

    Of a text without both lines the whole becomes the reason and the command stays empty: the
    environment answers `Nothing happens.`, the turn is spent, and the conversation stays readable.
    """
    match = _REASON_ACTION.match(text)
    command = match["command"].strip() if match else ""
    if match is None or not command or len(command) > MAX_COMMAND:
        return Action(reason=text.strip()[:MAX_TEXT]), False
    return Action(reason=match["reason"].strip()[:MAX_TEXT], command=command), True
