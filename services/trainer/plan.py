"""`python -m services.trainer.plan --run DIR ...` plays a split with look-ahead every turn."""

from __future__ import annotations

import sys

from pydantic import Field

from agentprm.config import Evaluation
from agentprm.planned import PlannedRow, summarise_planned
from agentprm.protocol import Lookahead
from agentprm.runs import short_name
from agentprm.service import configure_logging
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.evaluation import evaluation_games
from services.trainer.single import SingleSettings, write_row


class PlanSettings(SingleSettings):
    """What is played, and how its actions are chosen."""

    policy: str = Field(description="the policy, such as policy/1")
    prm: str = Field(description="the PRM, such as prm/0")
    games: Evaluation = Field(description="games and sampling, as JSON")
    lookahead: Lookahead = Field(description="the search, as JSON")


def plan(collector: Collector, settings: PlanSettings) -> PlannedRow:
    """Have the games played with look-ahead, unless they were; the row of the table.

    Raises:
        NoGames: as `Collector.games`.
        JobsFailed, QueueError, ServiceError: as `Collector.collect`.
    """
    games, seed = evaluation_games(collector, settings.games)
    jobs = collector.jobs(
        "plan",
        games,
        policy=settings.policy,
        prm=settings.prm,
        sampling=settings.games.best_of_sampling,
        lookahead=settings.lookahead,
        seed=seed,
    )
    search = settings.lookahead
    collector.collect(
        "plan",
        jobs,
        f"{settings.policy} plays {len(games)} games of {settings.games.split}, {search.shape} "
        f"{search.depth}x{search.width} by {settings.prm} in the {search.model} model",
    )
    return summarise_planned(
        collector.records.episodes("plan"),
        policy=short_name(settings.policy),
        prm=short_name(settings.prm),
        max_steps=collector.max_steps,
        seed=collector.seed,
    )


def main() -> int:
    """Play, and write the row to `RUN/results.json`."""
    settings = PlanSettings.from_command_line()
    configure_logging("plan")
    return write_row(settings, lambda collector: plan(collector, settings))


if __name__ == "__main__":
    sys.exit(main())
