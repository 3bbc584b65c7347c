"""`agentprm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agentprm.cli.chosen_games import games_of_run
from agentprm.cli.common import (
    Games,
    Json,
    Overrides,
    Seed,
    config_of,
    console,
    explained,
    fail,
    new_or_same,
    print_results,
    settings,
)
from agentprm.cli.machine import train_connected, train_run
from agentprm.cli.services import Endpoints
from agentprm.config import Algorithm

_OF_SERVICES = {
    *("engine", "expert", "workers", "policy_replicas", "policy_engine", "sglang_urls"),
    *("policy_device", "prm_device"),
}
"""Settings that nothing reads where services and workers were started by themselves."""


def train(
    context: typer.Context,
    preset: Annotated[
        str,
        typer.Option(
            help="smoke (minutes), tiny (worth watching), best (a larger model), llama-3b (GPUs), "
            "or a .toml file"
        ),
    ] = "tiny",
    run: Annotated[
        Path | None, typer.Option(help="run directory; default runs/PRESET; goes on if it exists")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on with the run in this directory")
    ] = None,
    games: Games = None,
    seed: Seed = 0,
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(
            help="what Q is learnt from, outcomes or demonstrations alone, or a baseline; default "
            "the preset's"
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train an agent: demonstrations, π_0, then K times roll out, fit Q, improve π.

    Starts Redis, the services, rollout workers and the trainer as processes of this machine, and
    stops them at the end; where AGENTPRM_{ENV,POLICY,PRM}_URL and REDIS_URL name services that run
    already, as in compose, only the trainer. Interrupt it at any time; the same command goes on
    where it stopped.
    """
    if resume is not None:
        for name in ("preset", "run", "seed", "algorithm", "overrides"):
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                flag = "set" if name == "overrides" else name
                fail(f"--{flag} is for a new run: one that is resumed has its settings")
        directory, config = resume, config_of(resume)
    else:
        directory = run or Path("runs") / Path(preset).stem
        chosen = [f"algorithm={algorithm}"] if algorithm else []
        config = settings(preset, seed, [*(overrides or []), *chosen])
    with explained():
        if resume is None:
            new_or_same(directory, config, f"go on with it by --resume {directory}")
        console.print(
            f"Run [bold]{escape(str(directory))}[/bold]: {config.algorithm}, preset "
            f"{escape(config.preset)}, seed {config.seed}"
        )
        if (endpoints := Endpoints.given()) is not None:
            if games is not None:
                fail("--games is of a new environment: the one at AGENTPRM_ENV_URL has its games")
            if idle := _OF_SERVICES & set(config.overrides):
                console.print(
                    f"[yellow]warning:[/yellow] {', '.join(sorted(idle))}: the services and "
                    "workers run already, by their own settings"
                )
            train_connected(directory, endpoints, quiet=as_json)
        else:
            played = games_of_run(directory, games, console)
            train_run(directory, config, played, quiet=as_json)
    if as_json:
        print_results(directory)
    else:
        table, curves = f"{directory}/results.json", f"tensorboard --logdir {directory}"
        console.print(f"Table: {table}   curves: {curves}", markup=False)
