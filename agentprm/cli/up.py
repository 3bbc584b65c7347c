"""`agentprm up`: the services, until they are interrupted."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from agentprm.cli.chosen_games import played_games
from agentprm.cli.common import Device, config_of, explained, fail
from agentprm.cli.machine import serve_run
from agentprm.cli.services import SGLANG_COMMAND, Options
from agentprm.config import PolicyEngine
from agentprm.registry import Registry
from agentprm.runs import is_worked_on


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
            help="IP address to listen on, such as 0.0.0.0 or :: for other machines, which takes "
            "keys in AGENTPRM_API_KEYS"
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
        fail("give --run, or --policy, --prm or both")
    if engine_url and engine is not PolicyEngine.SGLANG:
        fail("--engine-url is for --engine sglang")
    if sglang_command != SGLANG_COMMAND and (engine is not PolicyEngine.SGLANG or engine_url):
        fail("--sglang-command is for --engine sglang without --engine-url")
    if not _is_address(host):
        fail(f"--host is an IP address of this machine, as 127.0.0.1, 0.0.0.0 or ::, not {host!r}")
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


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
