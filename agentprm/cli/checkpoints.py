"""`agentprm checkpoints`: what a registry holds, how one gets into it, and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentprm.canary import FILE
from agentprm.cli.common import (
    Json,
    console,
    explained,
    fail,
    print_json,
    require_unwanted,
)
from agentprm.ensembles import write_ensemble
from agentprm.export import Dtype, export
from agentprm.registry import KINDS, CheckpointError, Registry

Root = Annotated[
    Path, typer.Option("--registry", help="directory of checkpoints, such as RUN/checkpoints")
]

app = typer.Typer(
    no_args_is_help=True, help="Checkpoints of a registry: list them, add your own, hand them on."
)


@app.command("list")
def list_checkpoints(registry: Root, as_json: Json = False) -> None:
    """The finished checkpoints, with their size, and whether they carry a canary."""
    if not registry.is_dir():
        fail(f"there is no directory {registry}")
    found = Registry(registry)
    paths = {version: found.path(version) for kind in KINDS for version in found.versions(kind)}
    rows = [(version, _bytes(path), (path / FILE).is_file()) for version, path in paths.items()]
    if as_json:
        content = [dict(zip(("version", "bytes", "canary"), row, strict=True)) for row in rows]
        print_json(content)
        return
    for version, size, canary in rows:
        mark = "canary" if canary else "no canary"
        typer.echo(f"{version:<14} {size / 2**20:>10,.1f} MiB  {mark}")


@app.command()
def adopt(
    source: Annotated[Path, typer.Argument(help="a Hugging Face directory, safetensors only")],
    version: Annotated[str, typer.Argument(help="what to call it, such as policy/7 or prm/3")],
    registry: Root,
) -> None:
    """Copy a checkpoint of your own into the registry, where services can load it."""
    try:
        require_unwanted(registry, version)
        Registry(registry).adopt(source, version)
    except (CheckpointError, OSError) as error:
        fail(str(error))
    typer.echo(f"{version} is {Registry(registry).path(version)}")


@app.command("export")
def export_checkpoints(
    out: Annotated[Path, typer.Argument(help="directory that gets policy/0, prm/0 and so on")],
    registry: Root,
    dtype: Annotated[Dtype, typer.Option(help="what the weights are rounded to")] = "float16",
) -> None:
    """Write all policies and PRMs as small Hugging Face directories, for others to load."""
    try:
        written = export(Registry(registry), out, dtype)
    except (CheckpointError, OSError) as error:
        fail(str(error))
    for path in written:
        typer.echo(f"{_bytes(path) / 2**20:>10,.1f} MiB  {path}")


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


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*"))
