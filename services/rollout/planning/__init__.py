"""Look-ahead with the PRM, in a learned model of the environment or in the environment itself."""

from services.rollout.planning.learned import LearnedModel
from services.rollout.planning.look_ahead import look_ahead
from services.rollout.planning.model import Arrival, Model, Place
from services.rollout.planning.search import Choice, search
from services.rollout.planning.true import TrueModel

__all__ = [
    "Arrival",
    "Choice",
    "LearnedModel",
    "Model",
    "Place",
    "TrueModel",
    "look_ahead",
    "search",
]
