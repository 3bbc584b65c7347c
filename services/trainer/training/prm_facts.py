"""What `agentprm.json` says of how a PRM was fitted, and on what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentprm.config import PRMSettings
from agentprm.protocol import Episode, GameSet, PRMFacts, TrainingData
from services.trainer.training.fitting import Metrics

Sides = tuple[Sequence[int], Sequence[int]]
"""Indices of the episodes that train and of those that validate, by `monte_carlo.split_by_game`."""


@dataclass(frozen=True)
class FittedOn:
    """The games of a fit: of each episode that trains, and of each that validates, its game's id.

    `splits` are those of the index that the games are from.
    """

    splits: list[str]
    training: list[str]
    validation: list[str]


def fitted_on(episodes: Sequence[Episode], sides: Sides) -> FittedOn:
    """The games of episodes."""
    training, validation = ([episodes[i].game.id for i in side] for side in sides)
    splits = sorted({episode.game.split for episode in episodes})
    return FittedOn([*splits], training, validation)


def facts_of(
    known: PRMFacts,
    data: FittedOn,
    settings: PRMSettings,
    metrics: Metrics,
    *,
    seed: int,
    split_seed: int,
    kind: str = "prm",
) -> dict[str, Any]:
    """The content of the file: what is `known` of the fit, with the data that it was done on."""
    games = TrainingData(
        splits=data.splits,
        training=_game_set(data.training),
        validation=_game_set(data.validation),
    )
    known = known.model_copy(update={"data": games})
    return {
        "kind": kind,
        **known.model_dump(mode="json"),
        "settings": settings.model_dump(),
        "seed": seed,
        "split_seed": split_seed,
        "training_games": sorted(set(data.training)),
        "validation_games": sorted(set(data.validation)),
        "metrics": metrics,
    }


def _game_set(played: Sequence[str]) -> GameSet:
    games = sorted(set(played))
    digest = hashlib.sha256("\n".join(games).encode()).hexdigest()[:12]
    return GameSet(games=len(games), episodes=len(played), hash=digest)
