"""The run of a trainer process: its services, its loop, and what stops it."""

from __future__ import annotations

import structlog

from agentprm.config import Config
from agentprm.models.devices import DeviceError, processes_of_fits, require_visible
from agentprm.prompts import load_prompt
from agentprm.results import print_table
from services.trainer.base_model import BaseModelError
from services.trainer.baselines import LOOPS
from services.trainer.fits.launch import FitFailed, Launcher
from services.trainer.loop import Loop
from services.trainer.metrics import MetricsWriter
from services.trainer.opening import STOPS, open_run
from services.trainer.progress import Progress
from services.trainer.rollouts.demonstrations import DemonstrationsError
from services.trainer.settings import TrainerSettings
from services.trainer.training.fitting import quiet_transformers


def train(settings: TrainerSettings, config: Config) -> int:
    """Train to the end, and print the table. The exit code is 0 when it is there."""
    quiet_transformers()
    asked = settings.num_processes or config.num_processes
    accelerate = settings.accelerate or config.accelerate
    num_processes = processes_of_fits(asked, config.device, accelerate)
    if num_processes < asked:
        structlog.get_logger().info("as many processes as GPUs", asked=asked, gpus=num_processes)
    launch = None
    try:
        prompt = load_prompt(config.prompt)
        require_visible(config.device)
        if num_processes > 1:
            launch = Launcher(settings, num_processes, accelerate).perform
        with open_run(settings) as (services, records), MetricsWriter(settings.run) as metrics:
            progress = Progress(log=metrics.log)
            loop = LOOPS.get(config.algorithm, Loop)(
                settings.run, config, services, records, prompt, metrics, progress, launch
            )
            rows = loop.train()
    except (*STOPS, BaseModelError, DemonstrationsError, DeviceError, FitFailed) as error:
        structlog.get_logger().error(
            "training stopped; resume it when this is mended",
            why=str(error),
            exc_info=isinstance(error, OSError),  # a full disk, most likely, but who knows
        )
        return 1
    print_table(rows)
    return 0
