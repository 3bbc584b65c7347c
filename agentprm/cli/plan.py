"""`agentprm plan`: play with look-ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from agentprm.cli.chosen_games import games_to_play, played_games
from agentprm.cli.common import (
    Count,
    Device,
    Games,
    Json,
    Played,
    PlaySeed,
    at_temperature,
    config_of,
    console,
    digest_of,
    explained,
    fail,
    print_results,
)
from agentprm.cli.machine import play_run
from agentprm.cli.services import Options
from agentprm.cli.world import newest_world
from agentprm.config import Algorithm, Evaluation
from agentprm.ensembles import facts_of_all, link_checkpoints
from agentprm.protocol import MAX_STEPS, Lookahead, PRMFacts, Split
from agentprm.registry import Registry


def plan(
    run: Annotated[Path, typer.Option(help="the run whose checkpoints play")],
    depth: Annotated[int, typer.Option(help="actions of a path; 1 is Best-of-N", min=1)] = 2,
    width: Annotated[int, typer.Option(help="samples of the policy in a state", min=1)] = 4,
    model: Annotated[
        Literal["learned", "true"],
        typer.Option(help="what tells outcomes: the world model, or copies of the game itself"),
    ] = "learned",
    shape: Annotated[
        Literal["tree", "plans"],
        typer.Option(help="plans: one action a state after the first, and so a plan for each"),
    ] = "tree",
    policy: Annotated[str | None, typer.Option(help="such as policy/1; default the newest")] = None,
    prm: Annotated[str | None, typer.Option(help="such as prm/0; default the newest")] = None,
    world: Annotated[str | None, typer.Option(help="such as world/0; default the newest")] = None,
    games: Games = None,
    split: Played = Split.VALID_SEEN,
    count: Count = 10_000,
    max_steps: Annotated[
        int | None,
        typer.Option(help="turns of an episode; by default the run's", min=1, max=MAX_STEPS),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="of the samples; as for the run's Best-of-N", min=0, max=10)
    ] = None,
    device: Device = "auto",
    seed: PlaySeed = 0,
    as_json: Json = False,
) -> None:
    """Success rate and mean number of actions where each action is the first of the best plan.

    Every turn plans anew. Interrupted, the same command goes on where it stopped.
    """
    if world is not None and model == "true":
        fail("--world is for --model learned; with true the game itself is copied")
    config = config_of(run)
    with explained():
        registry = Registry(run / "checkpoints")
        policy = policy or registry.newest("policy")
        prm = prm or registry.newest("prm")
        why = next(filter(None, map(_no_return, facts_of_all(registry, prm))), None)
        if depth > 1 and why is not None:
            fail(f"{prm} {why}: give --depth 1")
        version = (world or newest_world(run)) if model == "learned" else None
        try:
            search = Lookahead(
                depth=depth,
                width=width,
                shape=shape,
                model=model,
                world_version=version,
                gamma=config.gamma,
            )
        except ValueError as error:
            fail(str(error))
        sampling = at_temperature(config.evaluation.best_of_sampling, temperature)
        played = [policy, prm, version or "true"]
        name = "-".join([*played, shape, f"{depth}x{width}", split]).replace("/", "-")
        at = "as-best-of-n" if temperature is None else f"{temperature:g}"
        directory = games_to_play(games or played_games(run), console)
        digest = digest_of(directory, config.prompt)
        max_steps = max_steps or config.max_steps
        home = run / "plans" / f"{name}-{count}-{max_steps}-{at}-{seed}-{digest}"
        link_checkpoints(run, home, policy, prm)
        worlds = home / "world"
        if version is not None:
            link_checkpoints(run, worlds, version)
        play_run(
            home,
            "services.trainer.plan",
            directory,
            Options(
                prompt=config.prompt,
                device=device,
                # TextWorld's forks are processes of their own, for which there is no room.
                engine="compiled" if version is None else config.engine,
                world_registry=worlds / "checkpoints" if version else None,
            ),
            [
                *("--policy", policy, "--prm", prm, "--seed", str(seed)),
                *("--lookahead", search.model_dump_json(), "--max-steps", str(max_steps)),
                "--games",
                Evaluation(split=split, games=count, best_of_sampling=sampling).model_dump_json(),
            ],
            quiet=as_json,
        )
        if as_json:
            print_results(home)


def _no_return(facts: PRMFacts) -> str | None:
    """Why Q is none of the game's, so that rewards and Q of later states say nothing about it."""
    if facts.objective == "relative":
        return "is relative, its Q of two states cannot be compared"
    if facts.algorithm == Algorithm.INVERSE_PRM:
        return "is an InversePRM, its Q adds up rewards that no game tells"
    if facts.alpha:
        return "was shaped, its Q is mixed with an advantage, which says nothing of the state"
    return None
