"""A collector without workers, for the tests of what the trainer asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from agentprm.protocol import GameList, Health, JobResult, Loaded, PreferenceJob, RolloutJob
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector, Services
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.records import Records
from tests.unit.trainer_episodes import episode

GAMES = [episode([], [], f"{k:02d}").game for k in range(20)]
"""All that the environment has."""


class Served:
    """Serves what it is told to; it knows what that was."""

    def __init__(self, version: str = "policy/0") -> None:
        self.version = version
        self.loaded: list[str] = []

    def health(self) -> Health:
        return Health(service="policy", status="healthy", package_version="0", version=self.version)

    def load(self, version: str, mark: str | None = None) -> Loaded:
        self.loaded.append(version)
        previous, self.version = self.version, version
        return Loaded(version=version, previous=previous, load_seconds=0, pause_seconds=0)


class Alone(Collector):
    """Loses every game in its first turn, without a worker; it knows the jobs of each stage."""

    def __init__(self, directory: Path) -> None:
        self.policy = Served()
        self.stages: dict[str, list[RolloutJob]] = {}
        found = GameList(games=GAMES, total=len(GAMES))
        services = Services(
            env=cast("Any", SimpleNamespace(games=lambda _: found)),
            policy=Fleet([cast("Any", self.policy)]),
            prm=Fleet([]),
            queue=cast("Any", None),
        )
        records, quiet = Records(directory / "records"), Progress(Console(quiet=True))
        super().__init__(services, records, quiet, seed=3, batch=8, max_steps=30)

    def collect(
        self, stage: str, jobs: Sequence[RolloutJob] | Sequence[PreferenceJob], what: str
    ) -> None:
        self.stages[stage] = [job for job in jobs if isinstance(job, RolloutJob)]
        for job in self.stages[stage]:
            lost = [episode(["look"], [0.0], game.split("/")[1]) for game in job.games]
            self.records.append(JobResult(job_id=job.id, worker="", seconds=0, episodes=lost))
