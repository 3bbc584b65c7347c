"""`python -m services.trainer.evaluate --run RUN ...` plays π_0, alone or as one of N samples."""

from __future__ import annotations

import sys

from pydantic import Field

from agentprm.config import Evaluation
from agentprm.protocol import ChoiceRule
from agentprm.results import Row
from agentprm.service import configure_logging
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.evaluation import evaluate, evaluate_chat
from services.trainer.single import SingleSettings, write_row


class EvaluateSettings(SingleSettings):
    """What is played. The checkpoints are `policy/0` and `prm/0` of the run's registry."""

    plan: Evaluation = Field(default=Evaluation(), description="games and sampling, as JSON")
    policy_name: str = Field(default="pi_0", description="what the row calls the policy")
    prm_name: str | None = Field(
        default=None, description="take the best of N by the PRM, and what the row calls it"
    )
    choice: ChoiceRule = Field(
        default=ChoiceRule.PRM, description="majority or random: take one of N by that rule"
    )
    chat_model: str | None = Field(
        default=None, description="play by this model of the workers' chat endpoint, not by π_0"
    )


def main() -> int:
    """Evaluate, and write the row to `RUN/results.json`."""
    settings = EvaluateSettings.from_command_line()
    configure_logging("evaluate")
    return write_row(settings, lambda collector: _row(collector, settings))


def _row(collector: Collector, settings: EvaluateSettings) -> Row:
    if settings.chat_model is not None:
        return evaluate_chat(collector, settings.plan, settings.chat_model)
    return evaluate(
        collector,
        settings.plan,
        policy="policy/0",
        prm=None if settings.prm_name is None else "prm/0",
        choice=settings.choice,
        names=(settings.policy_name, settings.prm_name),
    )


if __name__ == "__main__":
    sys.exit(main())
