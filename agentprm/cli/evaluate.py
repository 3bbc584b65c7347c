"""`agentprm eval`: how good a checkpoint is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from agentprm.cli.chosen_games import games_to_play
from agentprm.cli.common import (
    Count,
    Device,
    Games,
    Json,
    PlaySeed,
    at_temperature,
    console,
    explained,
    fail,
    print_results,
    settings,
)
from agentprm.cli.machine import play_run
from agentprm.cli.services import Options
from agentprm.facts import read_facts
from agentprm.protocol import MAX_CANDIDATES, MAX_STEPS, ChoiceRule, PRMFacts, Split
from agentprm.registry import Registry
from agentprm.runs import checkpoint_name


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
        facts = read_facts(prm) if prm is not None else PRMFacts()
    config = settings(preset)
    as_trained = config.evaluation.under(facts.algorithm, facts.alpha or 0.0)
    plan = as_trained.model_copy(
        update={
            "split": split or as_trained.split,
            "games": count,
            "best_of": best_of or as_trained.best_of,
            "sampling": at_temperature(as_trained.sampling, temperature),
            "best_of_sampling": at_temperature(as_trained.best_of_sampling, temperature),
        }
    )
    kept = "nothing of it is kept"
    with tempfile.TemporaryDirectory(prefix="agentprm-eval-") as directory, explained(kept):
        run = Path(directory)
        registry = Registry(run / "checkpoints")
        registry.adopt(policy, "policy/0")
        if prm is not None:
            registry.adopt(prm, "prm/0")
        flags = ["--plan", plan.model_dump_json(), "--seed", str(seed)]
        flags += ["--max-steps", str(max_steps or config.max_steps)]
        # A name may begin with a dash.
        flags += ["--choice", choice, f"--policy-name={checkpoint_name(policy)}"]
        flags += [f"--prm-name={checkpoint_name(prm)}"] if prm is not None else []
        play_run(
            run,
            "services.trainer.evaluate",
            games_to_play(games, console),
            Options(
                prompt=prompt or config.prompt,
                device=device,
                prm=prm is not None,
                engine=config.engine,
            ),
            flags,
            quiet=as_json,
        )
        if as_json:
            print_results(run)
