"""Games without a download: new ones in ALFWorld's own format, from what its package ships.

Floor plans, properties, goals, domain and grammar are those of the installed `alfworld` package.
How many things a room holds, where they lie and what is asked is drawn from frequencies learned
once from the real train split (`learned.json`, made by `learn`). A game is kept if the search
expert wins it in the compiled engine.
"""

from services.env.games.generate.writer import GenerationError, generate

__all__ = ["GenerationError", "generate"]
