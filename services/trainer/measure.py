"""`python -m services.trainer.measure --run RUN --plan FILE ...` measures checkpoints of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
from pydantic import Field

from agentprm.config import read_config
from agentprm.measurements import Measured, Measurement, read_measured, read_plan, write_measured
from agentprm.service import configure_logging
from services.trainer.metrics import MetricsWriter
from services.trainer.opening import STOPS, open_run
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.evaluation import evaluate
from services.trainer.rollouts.process_reward import process_reward, validation_states
from services.trainer.settings import TrainerSettings


class MeasureSettings(TrainerSettings):
    """What is measured."""

    plan: Path = Field(description="file of `agentprm.measurements`")


def main() -> int:
    """Measure what is not in `RUN/measured.json` yet, and write it there."""
    settings = MeasureSettings.from_command_line()
    configure_logging("measure")
    config = read_config(settings.run)
    try:
        with open_run(settings) as (services, records), MetricsWriter(settings.run) as metrics:
            collector = Collector(
                services,
                records,
                Progress(log=metrics.log),
                seed=config.seed,
                batch=config.batch,
                max_steps=config.max_steps,
            )
            for measurement in read_plan(settings.plan):
                measured = read_measured(settings.run)
                if measurement.name not in measured:
                    measured[measurement.name] = _measure(collector, measurement)
                    write_measured(settings.run, measured)
    except STOPS as error:
        structlog.get_logger().error("stopped; the same command goes on", why=str(error))
        return 1
    return 0


def _measure(collector: Collector, measurement: Measurement) -> Measured:
    policy, prm, plan = measurement.policy, measurement.prm, measurement.plan
    steering = prm if measurement.steered else None
    row = evaluate(
        collector,
        plan,
        policy=policy,
        prm=steering,
        choice=measurement.choice,
        stage=measurement.name,
    )
    if prm is None or not measurement.states:
        return Measured(row=row)
    states = validation_states(collector.records, measurement.states, collector.seed)
    return Measured(row=row, process_reward=process_reward(collector, policy, prm, states, plan))


if __name__ == "__main__":
    sys.exit(main())
