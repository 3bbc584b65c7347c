"""`agentprm world`: fit a world model on a run's episodes, and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from agentprm.cli.common import Device, Json, config_of, explained, print_json
from agentprm.cli.fits import fit_here
from agentprm.cli.processes import Machine
from agentprm.cli.services import Options, start_world
from agentprm.ensembles import link_checkpoints
from agentprm.registry import CheckpointError, Registry

Run = Annotated[Path, typer.Option(help="the run whose episodes are read; not while it trains")]

app = typer.Typer(
    no_args_is_help=True, help="World models: what follows a command, learned from a run."
)


@app.command("fit")
def fit(
    run: Run,
    iteration: Annotated[
        int | None,
        typer.Option(help="i: begin as π_i, read the rollouts of π_0..π_i; default the newest"),
    ] = None,
) -> None:
    """Fit `world/I` on the demonstrations and rollouts of a run, with its settings of SFT."""
    config = config_of(run)
    with explained("the same command begins the fit anew"):
        i = _newest(run) if iteration is None else iteration
        module = "services.trainer.world.fit"
        fit_here(run, config, "world-fit", module, "--iteration", str(i))


@app.command("eval")
def evaluate(
    run: Run,
    world: Annotated[
        str | None, typer.Option(help="the world model, such as world/0; default the newest")
    ] = None,
    count: Annotated[int, typer.Option(help="transitions of a split, at most", min=1)] = 1000,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="draws the transitions")] = 0,
    as_json: Json = False,
) -> None:
    """How often it tells the outcome of a command in games that were held out of its fit."""
    config = config_of(run)
    with explained():
        version = world or newest_world(run)
        home = run / "worlds" / version.replace("/", "-")
        link_checkpoints(run, home, version)
        out = home / f"accuracy-{seed}-{count}.json"
        flags = ["--run", str(run), "--world", version, "--out", str(out)]
        flags += ["--count", str(count), "--seed", str(seed)]
        with Machine(home) as machine:
            options = Options(prompt=config.prompt, device=device)
            flags += ["--world-url", start_world(machine, home / "checkpoints", options)]
            module = "services.trainer.world.evaluate"
            machine.start("world-eval", module, *flags, in_terminal=True)
            machine.finish("world-eval")
        rows = orjson.loads(out.read_bytes())
        if as_json:
            print_json(rows)
        else:
            Console().print(_table(rows))


def newest_world(run: Path) -> str:
    """The newest world model of a run.

    Raises:
        CheckpointError: it has none.
    """
    versions = Registry(run / "checkpoints").versions("world")
    if not versions:
        raise CheckpointError(f"{run} has no world model: agentprm world fit --run {run}")
    return versions[-1]


def _newest(run: Path) -> int:
    """The last i whose rollouts are recorded."""
    stages = (run / "records").glob("pi_*-rollouts.jsonl")
    found = [int(path.stem.removeprefix("pi_").partition("-")[0]) for path in stages]
    if not found:
        raise CheckpointError(f"{run} has no rollouts yet to fit a world model on")
    return max(found)


def _table(rows: list[dict[str, float | str | None]]) -> Table:
    table = Table(title="Accuracy on held-out games, after what really happened")
    table.add_column("")
    for row in rows:
        table.add_column(f"{row['world']}, {row['split']}", justify="right")
    for name in rows[0] if rows else ():
        if name not in ("world", "split", "seed"):
            table.add_row(name.replace("_", " "), *(_cell(row[name]) for row in rows))
    return table


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)
