"""The commands of `agentprm`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from agentprm.cli.baseline import app as baseline_app
from agentprm.cli.checkpoints import app as checkpoints_app
from agentprm.cli.common import (
    Count,
    Device,
    Games,
    Json,
    Overrides,
    PlaySeed,
    Seed,
    at_temperature,
    config_of,
    console,
    explained,
    fail,
    new_or_same,
    print_results,
    require_unwanted,
    settings,
)
from agentprm.cli.games import app as games_app
from agentprm.cli.games import games_of_run, games_to_play, played_games
from agentprm.cli.machine import evaluate_run, serve_run, train_connected, train_run
from agentprm.cli.plan import plan
from agentprm.cli.prm import app as prm_app
from agentprm.cli.services import SGLANG_COMMAND, Endpoints, Options
from agentprm.cli.studies import report, study
from agentprm.cli.world import app as world_app
from agentprm.config import Algorithm, Evaluation, PolicyEngine
from agentprm.ensembles import write_ensemble
from agentprm.facts import read_facts
from agentprm.protocol import MAX_CANDIDATES, MAX_STEPS, ChoiceRule, Split
from agentprm.registry import Registry
from agentprm.runs import checkpoint_name, is_worked_on

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Process reward models for LLM agents: train, evaluate and serve.",
)
app.add_typer(games_app, name="games")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(baseline_app, name="baseline")
app.add_typer(prm_app, name="prm")
app.add_typer(world_app, name="world")
app.command()(plan)
app.command()(study)
app.command()(report)


@app.command()
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
            f"Run [bold]{directory}[/bold]: {config.algorithm}, preset {config.preset}, "
            f"seed {config.seed}"
        )
        if (endpoints := Endpoints.given()) is not None:
            if games is not None:
                fail("--games is of a new environment: the one at AGENTPRM_ENV_URL has its games")
            train_connected(directory, endpoints, quiet=as_json)
        else:
            played = games_of_run(directory, games, console)
            train_run(directory, config, played, quiet=as_json)
    if as_json:
        print_results(directory)
    else:
        console.print(f"Table: {directory}/results.json   curves: tensorboard --logdir {directory}")


@app.command("eval")
def evaluate(
    policy: Annotated[Path, typer.Option(help="directory of a policy checkpoint")],
    prm: Annotated[
        Path | None, typer.Option(help="directory of a PRM checkpoint: Best-of-N by it")
    ] = None,
    choice: Annotated[
        ChoiceRule, typer.Option(help="or, without a PRM: which of N samples is played")
    ] = ChoiceRule.PRM,
    best_of: Annotated[
        int | None,
        typer.Option(
            help="N, where a PRM or a choice is given; by default the preset's",
            min=2,
            max=MAX_CANDIDATES,
        ),
    ] = None,
    games: Games = None,
    split: Annotated[
        Split | None, typer.Option(help="the games that are played; by default the preset's")
    ] = None,
    count: Count = 10_000,
    max_steps: Annotated[
        int | None,
        typer.Option(help="turns of an episode; by default the preset's", min=1, max=MAX_STEPS),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="the game is played as in the evaluations of this preset")
    ] = "tiny",
    temperature: Annotated[
        float | None, typer.Option(help="in place of the preset's", min=0, max=10)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="chat, state, or a template file; by default the preset's")
    ] = None,
    device: Device = "auto",
    seed: PlaySeed = 0,
    as_json: Json = False,
) -> None:
    """Success rate and mean number of actions of a checkpoint, with 95 % intervals."""
    if prm is not None and choice is not ChoiceRule.PRM:
        fail(f"--choice {choice} takes no --prm")
    if best_of is not None and prm is None and choice is ChoiceRule.PRM:
        fail("--best-of takes --prm DIR, or --choice majority or random")
    with explained():
        algorithm = read_facts(prm).algorithm if prm is not None else None
    config = settings(preset)
    as_trained = config.evaluation.under(algorithm)
    plan = Evaluation(
        split=split or as_trained.split,
        games=count,
        best_of=best_of or as_trained.best_of,
        sampling=at_temperature(as_trained.sampling, temperature),
        best_of_sampling=at_temperature(as_trained.best_of_sampling, temperature),
        best_of_beta=as_trained.best_of_beta,
    )
    kept = "nothing of it is kept"
    with tempfile.TemporaryDirectory(prefix="agentprm-eval-") as directory, explained(kept):
        run = Path(directory)
        registry = Registry(run / "checkpoints")
        registry.adopt(policy, "policy/0")
        if prm is not None:
            registry.adopt(prm, "prm/0")
        evaluate_run(
            run,
            plan,
            games_to_play(games, console),
            names=(checkpoint_name(policy), None if prm is None else checkpoint_name(prm)),
            choice=choice,
            max_steps=max_steps or config.max_steps,
            seed=seed,
            options=Options(prompt=prompt or config.prompt, device=device, engine=config.engine),
            quiet=as_json,
        )
        if as_json:
            print_results(run)


@app.command()
def up(
    run: Annotated[
        Path | None, typer.Option(help="serve the newest checkpoints of this run")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="or: directory of a policy")] = None,
    prm: Annotated[Path | None, typer.Option(help="or: directory of a PRM")] = None,
    games: Annotated[
        str | None,
        typer.Option(
            help="directory of ALFWorld games, or an environment of your own, as module:Class; by "
            "default those the run has played, then $ALFWORLD_DATA",
            metavar="DIR|MODULE:CLASS",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="chat, state, or a template file; by default the run's, else chat"),
    ] = None,
    device: Device = "auto",
    host: Annotated[
        str,
        typer.Option(
            help="address to listen on, such as 0.0.0.0 for other machines, which takes keys in "
            "AGENTPRM_API_KEYS"
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            help="env at this port, policy at the next, PRM at the one after", min=1, max=65533
        ),
    ] = 8001,
    privileged: Annotated[
        bool, typer.Option(help="let the environment tell hidden state and expert actions")
    ] = False,
    engine: Annotated[
        PolicyEngine, typer.Option(help="what runs the policy: transformers, or SGLang")
    ] = PolicyEngine.EMBEDDED,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(help="a SGLang server; repeat it for several; by default one is started"),
    ] = None,
    sglang_command: Annotated[
        str, typer.Option(help="what starts one, with {model} and {port} in it")
    ] = SGLANG_COMMAND,
) -> None:
    """Serve environment, policy and PRM on this machine until interrupted.

    Without games, where there is no run that has played any, there is no environment; without a
    PRM no Best-of-N.
    """
    if (run is None) == (policy is None and prm is None):
        fail("give either --run, or --policy and --prm")
    if engine_url and engine is not PolicyEngine.SGLANG:
        fail("--engine-url is for --engine sglang")
    if sglang_command != SGLANG_COMMAND and (engine is not PolicyEngine.SGLANG or engine_url):
        fail("--sglang-command is for --engine sglang without --engine-url")
    if run is not None and not run.is_dir():
        fail(f"there is no run directory {run}")
    if run is not None and is_worked_on(run):
        fail(
            f"{run} is being trained or measured, and its services note in it what they serve: "
            f"give checkpoints of it, as --policy {run}/checkpoints/policy/0"
        )
    ended = "nothing is served any more"
    with tempfile.TemporaryDirectory(prefix="agentprm-up-") as directory, explained(ended):
        home = run or Path(directory)
        registry = Registry(home / "checkpoints")
        if policy is not None:
            registry.adopt(policy, "policy/0")
        if prm is not None:
            registry.adopt(prm, "prm/0")
        of_run = config_of(home) if (home / "config.json").exists() else None
        # Checkpoints alone do not tell what they were trained with.
        trained = Options() if of_run is None else Options.of(of_run)
        options = Options(
            prompt=prompt or trained.prompt,
            device=device,
            max_steps=trained.max_steps,
            policy_engine=engine,
            sglang_urls=tuple(engine_url or ()),
            sglang_command=sglang_command,
        )
        games = games or played_games(home) or os.environ.get("ALFWORLD_DATA")
        if privileged and games is None:
            fail("--privileged is of an environment, which takes --games")
        serve_run(home, games, options, host=host, first_port=port, privileged=privileged)


@app.command()
def ensemble(
    version: Annotated[str, typer.Argument(help="a free version, such as prm/3")],
    members: Annotated[list[str], typer.Argument(help="two or more, such as prm/0 prm/1 prm/2")],
    run: Annotated[Path, typer.Option(help="the run that the checkpoints are of")],
) -> None:
    """Name several PRMs as one: it answers with their mean and their standard deviation."""
    with explained():
        require_unwanted(run / "checkpoints", version)
        write_ensemble(Registry(run / "checkpoints"), version, members)
    console.print(f"{version}: {', '.join(members)}")
