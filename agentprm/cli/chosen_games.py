"""The games that a command plays: those given, remembered, downloaded or generated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from agentprm import __version__
from agentprm.files import user_cache, write_atomic
from agentprm.runs import is_worked_on

FRACTION = 1.0
"""How many games are generated where there are none, as a share of the published ones of each
split."""


class GamesError(Exception):
    """There are no games, or they are of another environment than the run's."""


def is_environment(games: str) -> bool:
    """Whether they are those of an environment of the user's own, and not a directory."""
    return ":" in games and not Path(games).exists()


def absolute(games: str) -> str:
    """What names these games in any current directory."""
    return games if is_environment(games) else str(Path(games).resolve())


def games_of_run(run: Path, games: str | None, console: Console) -> str:
    """The games that `run` plays: those given, or those it has played so far, or any there are.

    The run remembers them, so that it goes on with the same where none are given. Until there are
    records, what is remembered may have been a slip. What is given to a run that another process
    works on is not remembered: the trainer will refuse to work on it too.

    Raises:
        GamesError: there are none, or they are of another environment than those played so far.
    """
    before = played_games(run)
    chosen = absolute(games_to_play(games or before, console))
    if before is not None and before != chosen:
        if is_environment(before) or is_environment(chosen):
            raise GamesError(
                f"{run} was begun with the games of {before}, and those of {chosen} are of another "
                "environment: make a new run, by --run. (If only its name has changed, write the "
                f"new one to {run / 'games'}.)"
            )
        console.print(
            f"{run} has played the games of {before}: it goes on with those of {chosen}",
            markup=False,
        )
    run.mkdir(parents=True, exist_ok=True)
    if not is_worked_on(run):
        write_atomic(run / "games", chosen.encode())
    return chosen


def played_games(run: Path) -> str | None:
    """The games that `run` has played so far, if it has played any."""
    file = run / "games"
    played = file.exists() and (run / "records").exists()
    return file.read_text() if played else None


def games_to_play(games: str | None, console: Console) -> str:
    """The games to play: those given, else $ALFWORLD_DATA, else ~/.cache/alfworld, else generated.

    Games are generated once for each version of the package, and kept in the user's cache.

    Raises:
        GamesError: they could not be generated.
    """
    games = games or os.environ.get("ALFWORLD_DATA")
    if games:
        return games
    downloaded = Path("~/.cache/alfworld").expanduser()
    if (downloaded / "json_2.1.1").is_dir():
        return str(downloaded)
    directory = user_cache() / "generated" / f"{__version__}-seed0"
    console.print(
        f"No games given: this run plays generated ones, in {directory}. For the real ones run "
        "alfworld-download, and give its directory as ALFWORLD_DATA or by --games.",
        markup=False,
    )
    if run_games_module("provide", [str(directory), "--fraction", str(FRACTION)]) != 0:
        raise GamesError(f"no games could be generated in {directory}")
    return str(directory)


def run_games_module(command: str, flags: list[str]) -> int:
    """Run a command of `python -m services.env.games`, whose output goes where ours goes; its exit
    code."""
    line = [sys.executable, "-m", "services.env.games", command, *flags]
    return subprocess.run(line, check=False).returncode
