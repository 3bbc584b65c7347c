"""What `agentprm.json` says of how a PRM was fitted, and on what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from agentprm.config import PRMSettings
from agentprm.protocol import Episode, GameSet, PRMFacts, TrainingData
from services.trainer.training.fitting import Metrics

Sides = tuple[Sequence[int], Sequence[int]]
"""Indices of the episodes that train and of those that validate, by `monte_carlo.split_by_game`."""


def facts_of(
    known: PRMFacts,
    episodes: Sequence[Episode],
    sides: Sides,
    settings: PRMSettings,
    metrics: Metrics,
    *,
    seed: int,
    split_seed: int,
    kind: str = "prm",
) -> dict[str, Any]:
    """The content of the file: what is `known` of the fit, with the data that it was done on."""
    known = known.model_copy(update={"data": _training_data(episodes, sides)})
    return {
        "kind": kind,
        **known.model_dump(mode="json"),
        "settings": settings.model_dump(),
        "seed": seed,
        "split_seed": split_seed,
        "training_games": games_of(episodes, sides[0]),
        "validation_games": games_of(episodes, sides[1]),
        "metrics": metrics,
    }


def games_of(episodes: Sequence[Episode], side: Sequence[int]) -> list[str]:
    """The ids of the games of one side, sorted."""
    return sorted({episodes[i].game.id for i in side})


def _training_data(episodes: Sequence[Episode], sides: Sides) -> TrainingData:
    """What a PRM was fitted on and what was held out."""
    return TrainingData(
        splits=sorted({episode.game.split for episode in episodes}),
        training=_game_set(episodes, sides[0]),
        validation=_game_set(episodes, sides[1]),
    )


def _game_set(episodes: Sequence[Episode], side: Sequence[int]) -> GameSet:
    games = games_of(episodes, side)
    digest = hashlib.sha256("\n".join(games).encode()).hexdigest()[:12]
    return GameSet(games=len(games), episodes=len(side), hash=digest)
