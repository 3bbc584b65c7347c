"""`python -m services.env.games`, which `agentprm games` runs: list, generate and check games."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from agentprm.protocol import Split
from services.env.alfworld import TASK_TYPES
from services.env.games.index import DataError, GameIndex

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="ALFWorld games: what there is, new ones, and a check of the compiled engine on them.",
)
console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

Games = Annotated[
    Path, typer.Option(help="directory of games, as alfworld-download makes it", show_default=False)
]
OneSplit = Annotated[Split | None, typer.Option(help="of this split alone")]
Seed = Annotated[int, typer.Option(min=0)]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]


@app.command("list")
def list_games(
    games: Games,
    split: OneSplit = None,
    task_type: Annotated[
        str | None, typer.Option(help=f"of this task type alone: {', '.join(sorted(TASK_TYPES))}")
    ] = None,
    as_json: Json = False,
) -> None:
    """Games with their task types and goals."""
    if task_type not in (None, *TASK_TYPES):
        _fail(f"there is no task type {task_type}; there are {', '.join(sorted(TASK_TYPES))}")
    try:
        found = GameIndex.open(games).select(split, task_type)
    except DataError as error:
        _fail(str(error))
    if not found:
        _fail(f"{games} has no games of {split or 'any split'}, {task_type or 'any task type'}")
    if as_json:
        _print([game.model_dump() for game in found])
        return
    for game in found:
        typer.echo(f"{game.id}  {game.task}")
    counts = Table("split", "task type", "games")
    for (of_split, kind), number in sorted(Counter((g.split, g.task_type) for g in found).items()):
        counts.add_row(of_split, kind, str(number))
    console.print(counts)


@app.command()
def generate(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="directory that gets json_2.1.1/SPLIT/...")
    ],
    split: Annotated[
        Split, typer.Option(help="valid_unseen plays in rooms 10, 219, 308, 424; the others not")
    ] = Split.TRAIN,
    count: Annotated[int, typer.Option(help="number of games", min=1)] = 100,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write new games in ALFWorld's own format; the same seed writes the same bytes.

    Needs no download: rooms and rules are those of the alfworld package. The expert has won each
    game in the compiled engine.
    """
    from services.env.games.generate import GenerationError
    from services.env.games.generate import generate as write_games

    kinds: Counter[str] = Counter()
    commands = 0
    start = time.perf_counter()
    try:
        games = write_games(split, count, seed, output)
        for game in track(games, f"Generating {split}", total=count, console=console):
            kinds[game.task_type] += 1
            commands += game.commands
    except OSError as error:
        _fail(f"cannot write games to {output} ({error.strerror}): give another directory")
    except GenerationError as error:
        _fail(f"{error}: give another --seed")
    summary = {
        "split": split,
        "games": count,
        "seed": seed,
        "directory": str(output),
        "task_types": dict(sorted(kinds.items())),
        "expert_commands": round(commands / count, 1),
        "games_per_second": round(count / (time.perf_counter() - start), 1),
    }
    if as_json:
        _print(summary)
    else:
        console.print(f"{count} games of {split} in {output}, won by the expert", markup=False)


@app.command()
def provide(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="directory that gets the games")],
    fraction: Annotated[
        float, typer.Option(help="of the numbers of the published games", min=0.0, max=1.0)
    ] = 1.0,
) -> None:
    """Generate games of every split into OUT, where it has none."""
    from services.env.games.provide import provide as fill

    try:
        with console.status(f"Generating games in {escape(str(output))}"):
            fill(output, fraction)
    except OSError as error:
        _fail(f"cannot write games to {output} ({error.strerror})")
    except DataError as error:
        _fail(str(error))


@app.command()
def check(
    games: Games,
    split: OneSplit = None,
    episodes: Annotated[int, typer.Option(help="number of games", min=1)] = 20,
    steps: Annotated[int, typer.Option(help="commands per game", min=1)] = 20,
    seed: Seed = 0,
    log: Annotated[
        Path | None, typer.Option(help="JSON lines, one a game; goes on where this one stopped")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play games in TextWorld and in the compiled engine in lock step, and compare every text.

    The commands are a seeded mix of expert, random and nonsense. Ends with 1 if anything differs.
    """
    from services.env.engine.check import check as play_both
    from services.env.engine.check import sample

    if not games.is_dir():
        _fail(f"there is no directory {games}: give one of games, as alfworld-download makes it")
    found = sample(games, split, episodes, seed)
    if not found:
        _fail(f"{games} has no games of {split or 'any split'}: {_how_to_get(split)}")
    with console.status(f"Comparing the engines on {len(found)} games"):
        report = asdict(play_both(found, steps=steps, seed=seed, log=log))
    if as_json:
        _print(report)
    else:
        for name, value in report.items():
            typer.echo(f"{name}: {value}")
    raise typer.Exit(1 if report["mismatches"] else 0)


def _how_to_get(split: Split | None) -> str:
    return f"run `alfworld-download`, or `agentprm games generate --split {split or 'train'} OUT`"


def _print(result: object) -> None:
    sys.stdout.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")


def _fail(message: str) -> NoReturn:
    console.print(f"error: {message}", markup=False)
    raise typer.Exit(2)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app(prog_name="agentprm games")
