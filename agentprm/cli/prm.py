"""`agentprm prm fit`: a PRM from the logs of an agent that is not ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.markup import escape

from agentprm.chats import CHATS_FILE, Chat, digest_of_chats, read_chats
from agentprm.cli.common import (
    Overrides,
    Seed,
    console,
    explained,
    fail,
    new_or_same,
    settings,
)
from agentprm.cli.fits import fit_here
from agentprm.config import Algorithm, Config
from agentprm.files import write_atomic
from agentprm.runs import is_begun

app = typer.Typer(no_args_is_help=True, help="PRMs from logs, without a training of the agent.")


@app.callback()
def _prm() -> None:
    """Makes `fit` a command of a group, also while it is the only one."""


@app.command()
def fit(
    chats: Annotated[
        Path,
        typer.Argument(help="a .jsonl file of chats with their rewards, or a directory of them"),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="directory or hub id of the model that becomes the PRM; tiny makes one from "
            "scratch"
        ),
    ],
    run: Annotated[Path, typer.Option(help="run directory; goes on if it exists")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="its settings `prm` and `gamma` hold; default tiny for the model tiny, "
            "llama-3b for others"
        ),
    ] = None,
    overrides: Overrides = None,
    seed: Seed = 0,
) -> None:
    """Fit Q on chats and what came of them; `agentprm up --run RUN` serves it.

    Interrupt it at any time; the same command begins the fit anew.
    """
    preset = preset or ("tiny" if model == "tiny" else "llama-3b")
    config = settings(preset, seed, [*(overrides or []), f"model={model}"])
    _require_outcomes(config)
    _require_model(model)
    with explained("the same command begins the fit anew"):
        given = read_chats(chats)
        _remember(run, chats, given)
        new_or_same(run, config, "go on with it by the options that it was begun with")
        tasks = len({chat.task for chat in given})
        console.print(
            f"Run [bold]{escape(str(run))}[/bold]: {len(given)} chats of {tasks} tasks, model "
            f"{escape(config.model)}, preset {escape(config.preset)}, seed {config.seed}"
        )
        if len({chat.outcome for chat in given}) == 1:
            console.print(
                f"[yellow]warning:[/yellow] all chats have the same outcome, {given[0].outcome:g}: "
                "from them nobody can tell good actions from bad ones"
            )
        if tasks == 1:
            console.print(
                "[yellow]warning:[/yellow] all chats are of one task, so none can be held out to "
                "measure the PRM: give each line its `task`"
            )
        fit_here(run, config, "prm-fit", "services.trainer.chats.fit", "--chats", str(chats))
    console.print(f"It is served by: agentprm up --run {run}", markup=False)


def _require_outcomes(config: Config) -> None:
    """Go on only where nothing but outcomes is asked for: Q of chats is fitted on no more."""
    other = {
        'prm.objective = "relative" needs several actions in one state': (
            config.prm.objective == "relative"
        ),
        "shaping.alpha above 0 needs rollouts of a reference policy": config.shaping.alpha > 0,
        f'algorithm = "{config.algorithm}" is a training of the agent': (
            config.algorithm is not Algorithm.AGENT_PRM
        ),
    }
    asked_for = [what for what, asked in other.items() if asked]
    if asked_for:
        fail(f"{asked_for[0]}, which a log of chats does not have: leave it out")


def _require_model(model: str) -> None:
    """Go on only where `model` is there, or may be on the hub: an id has one slash at most."""
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if is_path and not Path(model).is_dir():
        fail(f"there is no directory {model}")


def _remember(run: Path, path: Path, chats: Sequence[Chat]) -> None:
    """Note in a run what it is fitted on; one that was begun has to be fitted on the same."""
    file = run / CHATS_FILE
    digest = digest_of_chats(chats)
    if not is_begun(run):
        run.mkdir(parents=True, exist_ok=True)
        note = {"path": str(path.absolute()), "chats": len(chats), "sha256": digest}
        write_atomic(file, orjson.dumps(note, option=orjson.OPT_INDENT_2))
    elif not file.exists():
        fail(f"{run} holds another run, which was not fitted on chats: give another --run")
    elif orjson.loads(file.read_bytes())["sha256"] != digest:
        fail(f"{run} holds a PRM of other chats than {path} has now: give another --run")
