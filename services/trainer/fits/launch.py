"""Fits in processes of their own: `accelerate launch` starts them, and they share the work."""

from __future__ import annotations

import os
import subprocess
import sys

from agentprm.config import accelerate_file
from agentprm.files import write_atomic
from agentprm.lineage import bound
from services.trainer.fits.jobs import FitJob
from services.trainer.settings import TrainerSettings

_STOP_SECONDS = 60.0
"""Seconds in which the processes have to end when they are told to."""


class FitFailed(Exception):
    """The processes of a fit did not come to its end."""


class Launcher:
    """Has fits done by several processes of this machine.

    Args:
        settings: of the trainer; the processes take the same, from the environment.
        processes: how many.
        accelerate: `ddp`, `fsdp`, or the path of a file as `accelerate config` writes it.

    Raises:
        FitFailed: there is no such file.
    """

    def __init__(self, settings: TrainerSettings, processes: int, accelerate: str) -> None:
        try:
            file = accelerate_file(accelerate)
        except FileNotFoundError as error:
            raise FitFailed(str(error)) from None
        given = settings.model_dump(exclude_none=True)
        self._environment = {f"AGENTPRM_{name.upper()}": str(given[name]) for name in given}
        self._job = settings.run / "fit.json"
        self.argv = [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(file), "--num_processes", str(processes)),
            *("--module", "agentprm.lineage", "services.trainer.fits.process"),
            *("--job", str(self._job)),
        ]

    def perform(self, job: FitJob) -> None:
        """Do one fit; its checkpoint is in `job.out` afterwards.

        Raises:
            FitFailed: a process failed; what it printed says why.
        """
        write_atomic(self._job, job.model_dump_json(indent=2).encode())
        process = subprocess.Popen(
            bound(self.argv),
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,  # stdout is for the table
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        if code != 0:
            raise FitFailed(f"the processes of the fit ended with code {code}; see their messages")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
