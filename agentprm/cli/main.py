"""The commands of `agentprm`."""

from __future__ import annotations

import typer

from agentprm.cli.baseline import app as baseline_app
from agentprm.cli.checkpoints import app as checkpoints_app
from agentprm.cli.checkpoints import ensemble
from agentprm.cli.evaluate import evaluate
from agentprm.cli.games import app as games_app
from agentprm.cli.plan import plan
from agentprm.cli.prm import app as prm_app
from agentprm.cli.studies import report, study
from agentprm.cli.train import train
from agentprm.cli.up import up
from agentprm.cli.world import app as world_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Process reward models for LLM agents: train, evaluate and serve.",
)
app.command()(train)
app.command("eval")(evaluate)
app.command()(up)
app.command()(plan)
app.command()(study)
app.command()(report)
app.command()(ensemble)
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(games_app, name="games")
app.add_typer(baseline_app, name="baseline")
app.add_typer(prm_app, name="prm")
app.add_typer(world_app, name="world")
