"""`benchmarks.rooms`: games in rooms that its train split lacks."""

import subprocess
import sys
from pathlib import Path

from agentprm.protocol import Split
from benchmarks.rooms import draw_rooms
from services.env.games.generate import generate
from services.env.games.index import GameIndex


def test_eleven_rooms_of_all_kinds_are_drawn() -> None:
    rooms = {*range(1, 31), *range(201, 231), *range(301, 331), *range(401, 431)}
    drawn = draw_rooms(rooms, seed=0)
    assert drawn < rooms
    assert [sum(kind <= room < kind + 100 for room in drawn) for kind in (0, 200, 300, 400)] == [
        *(2, 3, 3, 3)
    ]
    assert draw_rooms(rooms, seed=0) == drawn != draw_rooms(rooms, seed=1)


def test_no_game_is_lost_and_no_room_in_both_splits(tmp_path: Path) -> None:
    for _ in generate(Split.TRAIN, 300, 0, tmp_path / "games"):
        pass
    command = [sys.executable, "-m", "benchmarks.rooms", "--games", str(tmp_path / "games")]
    command += ["--seed", "3", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made = GameIndex.open(tmp_path / "out")
    train, unseen = (made.select(split) for split in (Split.TRAIN, Split.VALID_SEEN))
    assert len(train) + len(unseen) == 300
    assert f"{len(train)} games of train; {len(unseen)} in rooms" in done.stdout
    rooms, others = (
        {game.id.split("/")[1].rsplit("-", 1)[1] for game in games} for games in (train, unseen)
    )
    assert others
    assert not rooms & others
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists" in again.stderr
