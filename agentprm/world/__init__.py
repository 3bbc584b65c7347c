"""World models: the conversation with one, and asking one that is served."""

from agentprm.world._conversation import (
    Outcome,
    answered,
    asked,
    conversation,
    opening,
    outcome_text,
    read_outcome,
)
from agentprm.world._endpoint import WorldModel

__all__ = [
    "Outcome",
    "WorldModel",
    "answered",
    "asked",
    "conversation",
    "opening",
    "outcome_text",
    "read_outcome",
]
