"""`agentprm baseline`: what is measured beside our own policies, by the same rows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import typer

from agentprm.cli.chosen_games import games_to_play
from agentprm.cli.common import (
    Count,
    Games,
    Json,
    MaxSteps,
    Played,
    PlaySeed,
    console,
    digest_of,
    explained,
    fail,
    print_results,
)
from agentprm.cli.machine import play_run
from agentprm.cli.services import Options
from agentprm.config import Evaluation
from agentprm.protocol import Sampling, Split

app = typer.Typer(no_args_is_help=True, help="Baselines; `train --algorithm` has those that train.")


@app.callback()
def _baseline() -> None:
    """Makes `react` a command of a group, also while it is the only one."""


@app.command()
def react(
    url: Annotated[
        str, typer.Option(help="an OpenAI-compatible endpoint, such as https://api.openai.com/v1")
    ],
    model: Annotated[str, typer.Option(help="the model's name there")],
    games: Games = None,
    split: Played = Split.VALID_SEEN,
    count: Count = 10_000,
    max_steps: MaxSteps = 30,
    temperature: Annotated[float, typer.Option(help="of the sampling", min=0, max=10)] = 0.5,
    max_tokens: Annotated[int, typer.Option(help="of an answer", min=1, max=4096)] = 256,
    prompt: Annotated[str, typer.Option(help="chat, state, or a template file")] = "chat",
    seed: PlaySeed = 0,
    as_json: Json = False,
) -> None:
    """Success rate of any chat model with our own prompt: REASON and ACTION in each turn (ReAct).

    The key is read from OPENAI_API_KEY. The games are those of `agentprm eval`, in its order. What
    was played lies in runs/react; interrupted, the same command goes on with it.
    """
    if importlib.util.find_spec("openai") is None:
        fail("this needs OpenAI's client: pip install '.[react]' in the clone")
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    plan = Evaluation(split=split, games=count, sampling=sampling)
    with explained():
        directory = games_to_play(games, console)
        played = (model, url, plan.model_dump_json(), str(max_steps), str(seed))
        name = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-.")
        run = Path("runs") / "react" / f"{name}-{digest_of(directory, prompt, *played)}"
        flags = ["--plan", plan.model_dump_json(), "--seed", str(seed)]
        flags += ["--max-steps", str(max_steps), "--chat-model", model]
        play_run(
            run,
            "services.trainer.evaluate",
            directory,
            Options(prompt=prompt, chat_url=url),
            flags,
            quiet=as_json,
        )
        if as_json:
            print_results(run)
