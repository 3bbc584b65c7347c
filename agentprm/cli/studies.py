"""`agentprm study` and `agentprm report`: what a run has shown, as figures and as a page."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from agentprm.cli.chosen_games import games_of_run
from agentprm.cli.common import Games, config_of, console, explained, fail
from agentprm.cli.machine import measure_run, train_run
from agentprm.config import Config, parse_overrides
from agentprm.files import write_atomic
from agentprm.measurements import Measurement
from agentprm.studies import STUDIES, Work, run_study


def study(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(STUDIES)}")],
    run: Annotated[Path, typer.Option(help="the run it is about, trained to its end")],
    games: Games = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="a setting of all variants, as evaluation.games=50; repeatable"),
    ] = None,
) -> None:
    """Make a figure or table of the paper from a run: RUN/studies/NAME.

    What training it takes happens below that directory, on what RUN has of demonstrations, π_0 and
    rollouts wherever the variant does not differ by then. Interrupt it at any time; the same
    command goes on where it stopped.
    """
    config_of(run)
    if name not in STUDIES:
        fail(f"no study {name!r}: there are {', '.join(STUDIES)}")
    _require_extra("matplotlib")
    try:
        settings = parse_overrides(overrides or [])
    except ValueError as error:
        fail(str(error))
    flags = [flag for setting in overrides or [] for flag in ("--set", setting)]
    command = shlex.join(["agentprm", "study", name, "--run", str(run), *flags])
    with explained():
        directory = run_study(STUDIES[name], run, _work(run, games), settings, command)
    files = "data.csv, figure.png, figure.svg, conditions.md"
    console.print(f"{directory}: {files}", markup=False)


def report(
    run: Annotated[Path, typer.Argument(help="directory of a run, finished or not")],
    out: Annotated[Path | None, typer.Option(help="the page; default RUN/report.html")] = None,
) -> None:
    """Put what a run has shown, its studies among it, on one page to read in a browser."""
    _require_extra("markdown_it")
    _require_extra("matplotlib")
    from agentprm.report import render_report

    config_of(run)
    file = out or run / "report.html"
    with explained():
        write_atomic(file, render_report(run).encode())
    console.print(f"Report: {file}", markup=False)


def _require_extra(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        fail("this takes what draws figures and pages: pip install '.[report]' in the clone")


def _work(source: Path, games: str | None) -> Work:
    """Training and measuring on this machine, on the games of the run `source` unless given."""

    def train(run: Path, config: Config) -> None:
        train_run(run, config, games_of_run(source, games, console), quiet=False)

    def measure(run: Path, config: Config, measurements: Sequence[Measurement]) -> None:
        measure_run(run, config, games_of_run(source, games, console), measurements)

    return Work(train, measure, console.print)
