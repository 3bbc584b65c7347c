"""`agentprm games`: games of ALFWorld, listed, generated and checked."""

from __future__ import annotations

import typer

from agentprm.cli.chosen_games import run_games_module

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


def _run(context: typer.Context) -> None:
    raise typer.Exit(run_games_module(str(context.info_name), context.args))
