"""What an expert is."""

from __future__ import annotations

from typing import Protocol

from agentprm.environment import Frame
from agentprm.protocol import Action


class ExpertError(Exception):
    """The expert cannot advise in this game."""


class Expert(Protocol):
    """Follows one episode and says what it would do."""

    def observe(self, command: str | None, frame: Frame) -> None:
        """What `command` led to; None for the first frame."""

    def act(self) -> Action:
        """The next action. Asking changes nothing.

        Raises:
            ExpertError: it has no advice.
        """
