"""Where demonstrations come from: the environment's expert, a file of episodes, or a policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
from pydantic import ValidationError

from agentprm.config import Demonstrations
from agentprm.protocol import Episode, JobResult, Split
from agentprm.registry import Registry
from agentprm.runs import DEMONSTRATIONS
from agentprm.validation import first_error
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.records import Records, job_id
from services.trainer.seeds import derive, shuffled

_EXPERT = "expert/0"


class DemonstrationsError(Exception):
    """What was named holds no episodes to learn from."""


def demonstrate(collector: Collector, registry: Registry, plan: Demonstrations) -> None:
    """Demonstrations into the records.

    Raises:
        DemonstrationsError: `plan.source` is a path without episodes of train games.
        CheckpointError: it is a directory of something else than a policy.
        NoGames: as `Collector.games`.
        JobsFailed, QueueError, ServiceError: as `Collector.collect`.
    """
    source = Path(plan.source)
    if plan.source != "expert" and not (source / "config.json").is_file():
        _take(collector, source, plan.games)
        return
    games = collector.games(Split.TRAIN, plan.games, DEMONSTRATIONS)
    if plan.source == "expert":
        jobs = collector.jobs(DEMONSTRATIONS, games, actor="expert")
    else:
        if not registry.exists(_EXPERT):
            registry.adopt(source, _EXPERT)
        jobs = collector.jobs(DEMONSTRATIONS, games, policy=_EXPERT, sampling=plan.sampling)
    who = "the expert" if plan.source == "expert" else plan.source
    collector.collect(DEMONSTRATIONS, jobs, f"{who} plays {len(games)} train games")


def require_won(records: Records) -> None:
    """Refuse demonstrations none of which was won: only such are imitated.

    Raises:
        DemonstrationsError: there is none.
    """
    played = records.episodes(DEMONSTRATIONS)
    if not any(episode.won for episode in played):
        raise DemonstrationsError(
            f"none of the {len(played)} demonstrations was won, and others are not imitated: "
            "start another run with better ones (demonstrations.source)"
        )


def read_episodes(path: Path) -> list[Episode]:
    """The episodes of a JSONL file, or of all such files in a directory.

    A line is an episode, or a job result as runs record them; empty ones are passed over. A line
    that a file has twice counts once: it is one result, which two trainers have recorded.

    Raises:
        DemonstrationsError: there is none, a line is neither, or a game is no train game.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    episodes = [episode for file in files if file.is_file() for episode in _episodes_in(file)]
    if not episodes:
        raise DemonstrationsError(f"{path} holds no demonstrations: neither JSONL nor a policy")
    foreign = next((e.game.id for e in episodes if e.game.split != Split.TRAIN), None)
    if foreign is not None:
        raise DemonstrationsError(f"{path}: {foreign} is no train game, so it is not trained on")
    return episodes


def _take(collector: Collector, path: Path, count: int) -> None:
    """Record at most `count` episodes, under ids of this run: they may be another run's."""
    job = job_id(DEMONSTRATIONS, 0)
    if job in collector.records.finished(DEMONSTRATIONS):
        collector.progress.skip(DEMONSTRATIONS)
        return
    collector.progress.start(DEMONSTRATIONS, f"demonstrations from {path}")
    drawn = shuffled(read_episodes(path), derive(collector.seed, DEMONSTRATIONS))[:count]
    episodes = [
        episode.model_copy(update={"id": f"{job}/{k}", "job_id": job})
        for k, episode in enumerate(drawn)
    ]
    collector.records.append(
        JobResult(job_id=job, worker=str(path), seconds=0.0, episodes=episodes)
    )
    collector.progress.end({"episodes": len(episodes)})


def _episodes_in(file: Path) -> Iterator[Episode]:
    seen = {b""}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip() in seen:
            continue
        seen.add(line.strip())
        try:
            yield from _episodes(line)
        except ValidationError as error:
            raise DemonstrationsError(
                f"{file}: line {number} is no episode: {first_error(error)}"
            ) from error
        except ValueError as error:
            raise DemonstrationsError(f"{file}: line {number} is no JSON: {error}") from error


def _episodes(line: bytes) -> list[Episode]:
    if "episodes" in orjson.loads(line):
        episodes = JobResult.model_validate_json(line).episodes
    else:
        episodes = [Episode.model_validate_json(line)]
    for episode in episodes:
        episode.transcript()  # no longer than the services take; records have no bounds
    return episodes
