"""Games in rooms that training never sees: a directory of games to give to `agentprm train`.

    python -m benchmarks.rooms --games DIR --seed 0 OUT
    agentprm train --preset tiny --games OUT --set evaluation.games=400

Of the rooms of the train split eleven are drawn: two kitchens and three of each other kind. Their
games are OUT's valid_seen, the others its train split; both are links to those in DIR.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agentprm.protocol import Split
from services.env.games.index import LAYOUT, GameIndex

HELD_OUT = {0: 2, 200: 3, 300: 3, 400: 3}
"""Kinds of rooms, by the first of their hundred numbers, with how many of them are held out: a
kitchen has twice the games of another room."""


def draw_rooms(rooms: set[int], seed: int) -> set[int]:
    """The rooms of `rooms` that are held out."""
    rng = random.Random(seed)
    held_out: set[int] = set()
    for first, count in HELD_OUT.items():
        kind = [room for room in sorted(rooms) if first <= room < first + 100]
        held_out.update(rng.sample(kind, count))
    return held_out


def main(
    out: Annotated[Path, typer.Argument(help="directory to make")],
    games: Annotated[Path, typer.Option(envvar="ALFWORLD_DATA", help="directory of the games")],
    seed: int = 0,
) -> None:
    """Make OUT, whose valid_seen plays in rooms that its train split lacks."""
    if out.exists():
        raise typer.BadParameter(f"{out} exists; name one that does not")
    index = GameIndex.open(games)
    tasks = sorted({game.id.split("/")[1] for game in index.select(Split.TRAIN)})
    room_of = {task: int(task.rsplit("-", 1)[1]) for task in tasks}
    held_out = draw_rooms(set(room_of.values()), seed)
    for task, room in room_of.items():
        split = Split.VALID_SEEN if room in held_out else Split.TRAIN
        link = out / LAYOUT / split / task
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((index.root / Split.TRAIN / task).absolute())
    made = GameIndex.open(out)
    train, unseen = (len(made.select(split)) for split in (Split.TRAIN, Split.VALID_SEEN))
    Console().print(f"{train} games of train; {unseen} in rooms {sorted(held_out)}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
