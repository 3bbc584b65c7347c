"""alfworld's handcoded expert. It sees the facts, so it runs inside the TextWorld worker."""

from __future__ import annotations

from agentprm.protocol import Action
from services.env.engine.base import Frame


class HandcodedExpert:
    """Hands on the engine's advice. The package's expert gives no reasons."""

    def __init__(self) -> None:
        self._advice = "look"

    def observe(self, command: str | None, frame: Frame) -> None:
        """Keep the latest advice."""
        self._advice = frame.advice or "look"

    def act(self) -> Action:
        """The next command, without a reason."""
        return Action(command=self._advice)
