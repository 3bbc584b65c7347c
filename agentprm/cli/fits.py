"""A fit that takes no services, in as many processes of this machine as its run's fits have."""

from __future__ import annotations

from pathlib import Path

from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.cli.services import require_devices
from agentprm.config import Config, accelerate_file
from agentprm.visible import visible_to_fits


def fit_here(run: Path, config: Config, name: str, module: str, *flags: str) -> None:
    """Have `python -m module --run RUN flags` fit, to its end.

    Raises:
        ProcessFailed: its device is not there, or it gave up, or dies again and again.
    """
    try:
        gpus = visible_to_fits(config.device, config.num_processes)
    except ValueError as error:
        raise ProcessFailed(str(error)) from error
    require_devices({"device": config.device})
    with Machine(run, gpus) as machine:
        launched = [*_launched(config, module), "--run", str(run), *flags]
        machine.start(name, *launched, in_terminal=True)
        machine.finish(name)


def _launched(config: Config, module: str) -> list[str]:
    """The module, or what runs it in several processes."""
    if config.num_processes == 1:
        return [module]
    from agentprm.models.devices import processes_of_fits  # torch, which takes seconds to import

    processes = processes_of_fits(config.num_processes, config.device, config.accelerate)
    if processes == 1:
        return [module]
    accelerate = ["--config_file", str(accelerate_file(config.accelerate))]
    accelerate += ["--num_processes", str(processes)]
    return ["accelerate.commands.launch", *accelerate, "--module", "agentprm.lineage", module]
