"""The games at hand: which there are, and what the train split says about where objects lie."""

from services.env.games.base import Games
from services.env.games.index import DataError, GameIndex
from services.env.games.placement import Placement

__all__ = ["DataError", "GameIndex", "Games", "Placement"]
