"""`python -m services.trainer --run RUN ...` trains; the last thing it prints is the table."""

from __future__ import annotations

import os
import sys

import structlog

from agentprm.config import read_config
from agentprm.service import configure_logging
from agentprm.visible import visible_to_fits
from services.trainer.settings import TrainerSettings


def main() -> int:
    """Train to the end. The exit code is 0 when the table is there."""
    settings = TrainerSettings.from_command_line()
    configure_logging("trainer")
    config = read_config(settings.run)
    try:
        gpus = visible_to_fits(config.device, settings.num_processes or config.num_processes)
    except ValueError as error:
        structlog.get_logger().error("training cannot begin", why=str(error))
        return 1
    os.environ.update(gpus)
    from services.trainer.train import train  # torch and CUDA, which look at what is visible

    return train(settings, config)


if __name__ == "__main__":
    sys.exit(main())
