"""The expert of the engine itself: alfworld's handcoded one, which sees the facts and so runs in
the TextWorld worker, or that of an environment of the user's own."""

from __future__ import annotations

from agentprm.environment import Frame
from agentprm.protocol import Action
from services.env.expert.base import ExpertError


class AdvisedExpert:
    """Hands on the advice in the frames."""

    def __init__(self) -> None:
        self._advice: Action | None = None

    def observe(self, command: str | None, frame: Frame) -> None:
        """Keep the latest advice."""
        self._advice = frame.advice

    def act(self) -> Action:
        """The advice.

        Raises:
            ExpertError: there is none.
        """
        if self._advice is None:
            raise ExpertError(
                "the environment gives no advice here: give it in Frame.advice, or give "
                "demonstrations by --set demonstrations.source=FILE"
            )
        return self._advice
