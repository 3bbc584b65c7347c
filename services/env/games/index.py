"""The index of the data directory: which games there are, built once and cached in a file.

The layout is the one `alfworld-download` makes, json_2.1.1/<split>/<task>/<trial>/, and the games
are those that alfworld itself would load: solvable, nothing movable or sliced, the six task types.
At start the cache is compared with the names, sizes and times of the game files; reading them is
what takes long, and happens only when these changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

from agentprm.environment import ALFWORLD
from agentprm.files import user_cache, write_atomic
from agentprm.protocol import Game, Split
from services.env.alfworld import GAME_FILE, TASK_TYPES
from services.env.games.base import Games
from services.env.games.placement import Placement, PlacementCounter

LAYOUT = "json_2.1.1"
CACHE_NAME = "agentprm-games.json"
CACHE_FORMAT = 1

_TASK = re.compile(r'"rhs":\s*"Your task is to: ([^"]+)"')
_PUT = re.compile(r"action PutObject \{\s*template :: \"(\w+) ")
_log = structlog.get_logger()


class DataError(Exception):
    """There are no games to play, or none by these settings; the message says what to do."""


@dataclass(frozen=True)
class GameIndex(Games):
    """ALFWorld's games, and what their text and their train split say."""

    root: Path
    generations: tuple[str, ...]
    """The verbs that put an object down: `move` since alfworld 0.4.0, `put` before."""
    placement: Placement

    name = ALFWORLD
    description = "ALFWorld: household tasks as text games."

    @property
    def data_version(self) -> str:
        """Layout and grammar generation, such as `json_2.1.1/move`."""
        return f"{LAYOUT}/{'+'.join(self.generations) or 'none'}"

    def path(self, game: Game) -> Path:
        """The game's file."""
        return self.root / game.id / GAME_FILE

    def source(self, game: Game) -> str:
        """The path of the game's file."""
        return str(self.path(game))

    @classmethod
    def open(cls, data: Path, cache: Path | None = None) -> GameIndex:
        """The index of `data`, from the cache if that still describes it.

        Args:
            data: the directory that holds json_2.1.1, or the one that holds the splits.
            cache: the cache file; by default one beside the splits, or in the user's cache
                directory where they are read-only.

        Raises:
            DataError: there is no such directory, or no game in it.
        """
        root = _root(data)
        files = dict(_files(root))
        fingerprint = hashlib.sha256(orjson.dumps(sorted(files.items()))).hexdigest()
        places = [cache] if cache else [root / CACHE_NAME, _cache_of(root)]
        for place in places:
            found = _read(place, fingerprint)
            if found is not None:
                return _index(root, found)
        _log.info("reading games", games=len(files), root=str(root))
        built = _build(root, list(files))
        if not built["games"]:
            raise DataError(f"no playable game in {root}: {_ADVICE}")
        _write(places, built | {"format": CACHE_FORMAT, "fingerprint": fingerprint})
        return _index(root, built)


_ADVICE = (
    "give, or have ALFWORLD_DATA name, a directory that `alfworld-download` filled, by default "
    "~/.cache/alfworld, or one that `agentprm games generate` did, which needs no download; or an "
    "environment of your own, as module:Class"
)


def _root(data: Path) -> Path:
    data = data.expanduser().absolute()
    if not data.is_dir():
        raise DataError(f"there is no directory {data}: {_ADVICE}")
    for root in (data / LAYOUT, data):
        if any((root / split).is_dir() for split in Split):
            return root
    raise DataError(f"no ALFWorld games in {data}: {_ADVICE}")


def _files(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Game ids, each with time and size of its file; a fraction of a second for 3,553 games."""
    for split in Split:
        if not (root / split).is_dir():
            continue
        for task in os.scandir(root / split):
            if "movable" in task.name or "Sliced" in task.name or not task.is_dir():
                continue
            for trial in os.scandir(task.path):
                try:
                    status = Path(trial.path, GAME_FILE).stat()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                name = f"{split}/{task.name}/{trial.name}"
                yield name, (status.st_mtime_ns, status.st_size)


def _build(root: Path, names: list[str]) -> dict[str, Any]:
    games: list[dict[str, str]] = []
    generations: set[str] = set()
    counter = PlacementCounter()
    for name in sorted(names):
        try:
            content = orjson.loads((root / name / GAME_FILE).read_bytes())
            trajectory = orjson.loads((root / name / "traj_data.json").read_bytes())
            task, put = _TASK.search(content["grammar"]), _PUT.search(content["grammar"])
            task_type, solvable = trajectory["task_type"], content.get("solvable", False)
            if task_type not in TASK_TYPES or not solvable or task is None:
                continue
            split = name.split("/", 1)[0]
            if split == Split.TRAIN:
                counter.add(content["pddl_problem"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("game left out", game=name, reason=repr(error))
            continue
        games.append({"id": name, "split": split, "task_type": task_type, "task": task[1]})
        generations.add(put[1] if put else "unknown")
    placement = counter.result()
    return {
        "games": games,
        "generations": sorted(generations),
        "placement": placement.probability,
        "openable": sorted(placement.openable),
    }


def _index(root: Path, content: dict[str, Any]) -> GameIndex:
    games = (Game.model_construct(**g | {"split": Split(g["split"])}) for g in content["games"])
    return GameIndex(
        games={game.id: game for game in games},
        root=root,
        generations=tuple(content["generations"]),
        placement=Placement(content["placement"], frozenset(content["openable"])),
    )


def _cache_of(root: Path) -> Path:
    return user_cache() / f"games-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}.json"


def _read(place: Path, fingerprint: str) -> dict[str, Any] | None:
    """The cache, or None where it is missing, damaged or out of date."""
    try:
        content = orjson.loads(place.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    current = content.get("format") == CACHE_FORMAT and content.get("fingerprint") == fingerprint
    return content if current else None


def _write(places: list[Path], content: dict[str, Any]) -> None:
    """Into the first place that can be written."""
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, orjson.dumps(content))
        except OSError as error:
            _log.warning("cannot cache the index", path=str(place), reason=str(error))
        else:
            return
