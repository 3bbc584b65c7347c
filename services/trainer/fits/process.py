"""`accelerate launch ... -m agentprm.lineage THIS_MODULE --job JOB`: one process of a fit."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import structlog
from pydantic import Field
from rich.console import Console

from agentprm.config import read_config
from agentprm.prompts import load_prompt
from agentprm.service import configure_logging
from services.trainer.fits.jobs import FitJob, Fits
from services.trainer.metrics import MetricsWriter
from services.trainer.opening import STOPS, connect
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.settings import TrainerSettings
from services.trainer.training.fitting import ignore, processes, quiet_transformers


class FitProcessSettings(TrainerSettings):
    """Those of the trainer, and what to do."""

    job: Path = Field(description="file that says which fit it is")


def main() -> int:
    """Do the fit in step with the other processes. The exit code is 0 when it is done."""
    settings = FitProcessSettings.from_command_line()
    configure_logging("trainer")
    quiet_transformers()
    job = FitJob.model_validate_json(settings.job.read_bytes())
    run, config = settings.run, read_config(settings.run)
    records, prompt = Records(run / "records"), load_prompt(config.prompt)
    state = processes()
    state.wait_for_everyone()  # from here on the main process may write to the records
    with ExitStack() as stack:
        if state.is_main_process:
            services = stack.enter_context(connect(settings))
            log = stack.enter_context(MetricsWriter(run)).log
            fits = Fits(run, config, records, prompt, log, Progress(log=log), services)
        else:
            quiet = Progress(Console(quiet=True))
            fits = Fits(run, config, records, prompt, ignore, quiet, None)
        try:
            fits.perform(job)
        except STOPS as error:
            structlog.get_logger().error("the fit stopped", why=str(error))
            return 1
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
