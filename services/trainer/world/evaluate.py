"""`python -m services.trainer.world.evaluate --run RUN ...` measures a served world model.

It is asked for the outcome of every turn of recorded episodes, each time after what really
happened. The games are those that took no part in its fit. The policy that it began as may have
read demonstrations of those that are train games; of other splits nobody has.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import structlog
from pydantic import Field

from agentprm.client import PolicyClient
from agentprm.facts import read_fit
from agentprm.files import write_atomic
from agentprm.protocol import Episode, Split
from agentprm.registry import Registry
from agentprm.service import configure_logging
from agentprm.settings import ProcessSettings, ServiceURL
from agentprm.world import WorldModel, read_outcome
from services.trainer.exclusive import exclusive
from services.trainer.opening import STOPS
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.seeds import derive
from services.trainer.world.accuracy import Accuracy, accuracy
from services.trainer.world.transitions import transitions

_BATCH = 256
"""Transitions asked for between two lines of progress."""
_DEADLINE = 900.0
"""Seconds that an outcome may take; on a CPU many wait for one another."""


class WorldEvaluateSettings(ProcessSettings):
    """What is measured, on what, and where the result goes."""

    run: Path = Field(description="run directory, with its records")
    world: str = Field(description="the world model, such as world/0")
    world_url: ServiceURL = Field(description="the service that serves it")
    out: Path = Field(description="file for the rows, as JSON")
    count: int = Field(default=1000, description="transitions of a split, at most")
    seed: int = Field(default=0, description="draws the transitions")


class Row(Accuracy):
    """The accuracy on one split, with its conditions."""

    world: str
    split: str
    games: int
    """Held-out games that the transitions were drawn from."""
    seed: int


def held_out(records: Records, trained: set[str]) -> list[Episode]:
    """The episodes of other games that the policy or the expert played from their beginning."""
    return [
        episode
        for path in sorted(records.directory.glob("*.jsonl"))
        for episode in records.episodes(path.stem)
        if episode.game.id not in trained and episode.start == 0 and episode.turns
    ]


def measure(
    model: WorldModel, episodes: Sequence[Episode], count: int, seed: int, progress: Progress
) -> Accuracy:
    """The model's accuracy on at most `count` transitions of the episodes.

    Raises:
        ServiceError: the model does not answer.
    """
    found = [each for episode in episodes for each in transitions(episode)]
    drawn = random.Random(seed).sample(found, min(count, len(found)))
    answers: list[str | None] = []
    for first in range(0, len(drawn), _BATCH):
        answers += model.answers([(t.told, t.command) for t in drawn[first : first + _BATCH]])
        progress.update(len(answers), len(drawn))
    predicted = [
        None if answer is None else read_outcome(answer, t.before)
        for t, answer in zip(drawn, answers, strict=True)
    ]
    return accuracy([t.before for t in drawn], [t.outcome for t in drawn], predicted)


def _rows(settings: WorldEvaluateSettings, model: WorldModel, progress: Progress) -> Iterator[Row]:
    checkpoint = Registry(settings.run / "checkpoints").path(settings.world)
    trained = set(read_fit(checkpoint, "training_games")["training_games"])
    episodes = held_out(Records(settings.run / "records"), trained)
    for split in Split:
        played = [episode for episode in episodes if episode.game.split is split]
        if not played:
            continue
        games = len({episode.game.id for episode in played})
        progress.start(settings.world, f"outcomes in {games} held-out games of {split}")
        seed = derive(settings.seed, settings.world, split)
        found = measure(model, played, settings.count, seed, progress)
        yield Row(
            **found.model_dump(), world=settings.world, split=split, games=games, seed=settings.seed
        )
        progress.end({"observation": found.observation or 0.0, "won": found.won or 0.0})


def main() -> int:
    """Measure, and write the rows."""
    settings = WorldEvaluateSettings.from_command_line()
    configure_logging("world")
    try:
        with (
            exclusive(settings.run),
            PolicyClient(settings.world_url, deadline=_DEADLINE) as client,
        ):
            model = WorldModel(client, settings.world)
            rows = [row.model_dump() for row in _rows(settings, model, Progress())]
    except STOPS as error:
        structlog.get_logger().error("the world model was not measured", why=str(error))
        return 1
    write_atomic(settings.out, orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
