"""`python -m services.trainer.evaluate --run RUN ...` plays π_0, alone or as one of N samples."""

from __future__ import annotations

import sys

import structlog
from pydantic import Field

from agentprm.config import Evaluation
from agentprm.protocol import ChoiceRule
from agentprm.results import Row, print_table, write_results
from agentprm.service import configure_logging
from services.trainer.app import STOPS, TrainerSettings, open_run
from services.trainer.collect import Collector
from services.trainer.evaluation import evaluate, evaluate_chat
from services.trainer.progress import Progress


class EvaluateSettings(TrainerSettings):
    """What is played. The checkpoints are `policy/0` and `prm/0` of the run's registry."""

    plan: Evaluation = Field(default=Evaluation(), description="games and sampling, as JSON")
    steered: bool = Field(default=False, description="take the best of N by the PRM")
    choice: ChoiceRule = Field(
        default=ChoiceRule.PRM, description="majority or random: take one of N by that rule"
    )
    chat_model: str | None = Field(
        default=None, description="play by this model of the workers' chat endpoint, not by π_0"
    )
    seed: int = Field(default=0, description="orders the games and seeds the sampling")
    max_steps: int = Field(default=30, description="turns of an episode")
    batch: int = Field(default=8, description="episodes of a job")


def main() -> int:
    """Evaluate, and write the row to `RUN/results.json`."""
    settings = EvaluateSettings.from_command_line()
    configure_logging("evaluate")
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
            row = _row(collector, settings)
    except STOPS as error:
        structlog.get_logger().error("stopped; the same command goes on", why=str(error))
        return 1
    write_results(settings.run, [row])
    print_table([row])
    return 0


def _row(collector: Collector, settings: EvaluateSettings) -> Row:
    if settings.chat_model is not None:
        return evaluate_chat(collector, settings.plan, settings.chat_model)
    prm = "prm/0" if settings.steered else None
    return evaluate(collector, settings.plan, policy="policy/0", prm=prm, choice=settings.choice)


if __name__ == "__main__":
    sys.exit(main())
