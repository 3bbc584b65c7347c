"""An evaluation by itself, outside of a run's loop: its settings, and the one row it ends with."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from pydantic import Field

from agentprm.results import Row, print_table, write_results
from services.trainer.opening import STOPS, open_run
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector
from services.trainer.settings import TrainerSettings


class SingleSettings(TrainerSettings):
    """How its episodes are played."""

    seed: int = Field(default=0, description="orders the games and seeds the sampling")
    max_steps: int = Field(default=30, description="turns of an episode")
    batch: int = Field(default=8, description="episodes of a job")


def write_row(settings: SingleSettings, play: Callable[[Collector], Row]) -> int:
    """Play, and write the row to `RUN/results.json`. The exit code is 0 when it is there."""
    try:
        with open_run(settings) as (services, records):
            collector = Collector(
                services,
                records,
                Progress(),
                seed=settings.seed,
                batch=settings.batch,
                max_steps=settings.max_steps,
            )
            row = play(collector)
    except STOPS as error:
        structlog.get_logger().error("stopped", why=str(error))
        return 1
    write_results(settings.run, [row])
    print_table([row])
    return 0
