"""Strategies that the tiny model can read, made from what an expert did.

A pretrained model understands `Look into closed places first.` A model made from scratch
understands what it was trained on: here `go to drawer, cabinet`, the kinds of places that the
expert went to, in that order, until it took something.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from agentprm.protocol import Episode
from services.trainer.seeds import derive

_GO = re.compile(r"go to (\w+)")


def hindsight(episode: Episode) -> str:
    """The strategy that the episode followed; empty where it went nowhere until it took a thing."""
    kinds: dict[str, None] = {}
    for turn in episode.turns:
        command = turn.action.command
        if command.startswith("take "):
            break
        if match := _GO.match(command):
            kinds[match[1]] = None
    return f"go to {', '.join(kinds)}" if kinds else ""


def hindsight_hints(episodes: Sequence[Episode], fraction: float, seed: int) -> list[str]:
    """A hint for each episode: for about `fraction` of them their strategy, else none."""
    return [
        hindsight(episode) if random.Random(derive(seed, episode.id)).random() < fraction else ""
        for episode in episodes
    ]
