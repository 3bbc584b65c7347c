"""Small episodes in the engine's words, for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentprm.protocol import Action, Episode, Game, Provenance, Split, Turn
from services.trainer.tiny import create_tiny

FIRST = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, "
    "and a sidetable 1.\n\nYour task is to: put a mug in cabinet."
)
ROOM = "You arrive at {}. On the {}, you see a mug 1, and an apple 2."


def episode(
    commands: Sequence[str], rewards: Sequence[float], game: str = "a", index: int = 0
) -> Episode:
    """An episode in which each command but the first follows the sight of `sidetable 1`."""
    turns = tuple(
        Turn(
            observation=FIRST if t == 0 else ROOM.format("sidetable 1", "sidetable 1"),
            action=Action(reason="find mug", command=command),
            reward=reward,
            policy_version="policy/0",
        )
        for t, (command, reward) in enumerate(zip(commands, rewards, strict=True))
    )
    return Episode(
        id=f"job/{index}",
        job_id="job",
        game=Game(
            id=f"train/{game}/trial",
            split=Split.TRAIN,
            task_type="pick_and_place_simple",
            task="put a mug in cabinet.",
        ),
        seed=index,
        turns=turns,
        final_observation="Nothing happens.",
        won=sum(rewards) > 0,
        provenance=Provenance(
            engine="test", package_version="0", data_version="0", template_hash="0"
        ),
    )


def create_small(parent: Path) -> Path:
    """A model of some ten thousand parameters that reads the engine's words, below `parent`."""
    directory = parent / "small"
    create_tiny(directory, seed=0, width=32, layers=2, heads=2, feed_forward=64)
    return directory
