"""`agentprm games`, and the games of a run to which none were given."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import typer
from rich.console import Console

from agentprm import __version__
from agentprm.protocol import Split

_MODULE = "services.env.games"
COUNTS = {Split.TRAIN: 3000, Split.VALID_SEEN: 140, Split.VALID_UNSEEN: 134}
"""Games that are generated where there are none: about as many as the published ones."""

app = typer.Typer(
    no_args_is_help=True,
    help="ALFWorld games: list them, generate new ones, check the compiled engine on them.",
)
# The options are those of the environment service's own command, and so is their help.
_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


@app.command("list", context_settings=_PASSED_ON, add_help_option=False)
def list_games(context: typer.Context) -> None:
    """Games in a directory: --games DIR [--split S] [--task-type T] [--json]."""
    _run(context)


@app.command("generate", context_settings=_PASSED_ON, add_help_option=False)
def generate(context: typer.Context) -> None:
    """New games without a download: --split S --count N --seed S OUT [--json]."""
    _run(context)


@app.command("check", context_settings=_PASSED_ON, add_help_option=False)
def check(context: typer.Context) -> None:
    """The compiled engine beside TextWorld: --games DIR [--split S] --episodes N --steps M."""
    _run(context)


class GamesError(Exception):
    """No games were given, and none could be generated."""


def games_directory(games: Path | None, console: Console) -> Path:
    """The games to play: those given, those alfworld-download left at its default, or generated.

    Games are generated once for each version of the package, and kept in the user's cache.

    Raises:
        GamesError: they could not be generated.
    """
    downloaded = Path("~/.cache/alfworld").expanduser()
    if games is not None:
        return games
    if (downloaded / "json_2.1.1").is_dir():
        return downloaded
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    directory = cache / "agentprm" / "generated" / f"{__version__}-seed0"
    console.print(
        f"No games given: this run plays generated ones, in {directory}. For the real ones run "
        "alfworld-download, and give its directory as ALFWORLD_DATA or by --games."
    )
    if not directory.is_dir():
        _generate(directory)
    return directory


def _generate(directory: Path) -> None:
    """Make the games beside the directory, which comes into being complete."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            made = Path(temporary, "games")
            for split, count in COUNTS.items():
                flags = ["--split", split, "--count", str(count), "--seed", "0", str(made)]
                if _module("generate", [*flags, "--json"], stdout=subprocess.DEVNULL) != 0:
                    raise GamesError("no games could be generated")
            if not directory.is_dir():  # another run may have been faster
                made.rename(directory)
    except OSError as error:
        raise GamesError(f"cannot write games to {directory} ({error.strerror})") from error


def _run(context: typer.Context) -> None:
    raise typer.Exit(_module(str(context.info_name), context.args))


def _module(command: str, flags: list[str], stdout: int | None = None) -> int:
    """Run the environment service's command; its output goes where ours goes."""
    line = [sys.executable, "-m", _MODULE, command, *flags]
    return subprocess.run(line, stdout=stdout, check=False).returncode
