"""Next actions from a policy service, and demonstrations from elsewhere, into the records."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from rich.console import Console

from agentprm.client import EnvClient, PolicyClient
from agentprm.config import Demonstrations
from agentprm.protocol import Episode, Game, JobResult, RolloutJob, Sampling, Split
from agentprm.queue import Queue
from agentprm.redis_server import RedisServer
from agentprm.registry import Registry
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector, Services, WrongVersion
from services.trainer.rollouts.demonstrations import (
    DemonstrationsError,
    demonstrate,
    read_episodes,
    require_won,
)
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.records import Records
from services.trainer.rollouts.transitions import read_next_actions, sample_next_actions
from tests.fake_services import EAST, WEST, Rooms, Walker, serving
from tests.unit.trainer_episodes import create_small, episode

STAGE = "pi_3-next-actions"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with RedisServer(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    with Queue(redis_url, "run") as queue:
        yield queue


def collector(queue: Queue, records: Path, *, policy: str = NOBODY, env: str = NOBODY) -> Collector:
    services = Services(
        env=EnvClient(env), policy=Fleet([PolicyClient(policy)]), prm=Fleet([]), queue=queue
    )
    quiet = Progress(Console(quiet=True))
    return Collector(services, Records(records), quiet, seed=7, batch=4, max_steps=30)


# --- next actions --------------------------------------------------------------------------------


def test_each_state_is_asked_about_once_whatever_breaks_off(queue: Queue, tmp_path: Path) -> None:
    """525 states behind transitions make 9 requests; at the sixth another policy answers."""
    episodes = [
        episode(["look"] * 5, [0.0] * 5, index=k).model_copy(update={"start": k % 2})
        for k in range(150)
    ]
    walker = Walker()
    app = walker.app()
    asked: list[str] = []
    breaks_at = 6

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Any:
        if request.url.path == "/v1/act":
            asked.append(request.url.path)
            if len(asked) == breaks_at:
                walker.version = "policy/9"
        return await call_next(request)

    with serving(app) as url:
        first = collector(queue, tmp_path / "records", policy=url)
        with pytest.raises(WrongVersion, match="answered with policy/9, not policy/3"):
            sample_next_actions(first, 3, episodes, Sampling())
        done = len(first.records.finished(STAGE))
        assert 4 <= done < 8
        asked.clear()
        breaks_at = 0
        again = collector(queue, tmp_path / "records", policy=url)
        for _ in range(2):
            sample_next_actions(again, 3, episodes, Sampling())
        assert len(asked) == 9 - done
        chosen = read_next_actions(again.records, 3)
        results = again.records.results(STAGE)
        assert len({each.seed for result in results for each in result.next_actions}) == 9
        straight = collector(queue, tmp_path / "straight", policy=url)
        sample_next_actions(straight, 3, episodes, Sampling())
    assert read_next_actions(straight.records, 3) == chosen
    for each in episodes:
        assert sorted(chosen[each.id]) == list(range(each.start + 1, 5))
    commands = Counter(a.command for turns in chosen.values() for a in turns.values())
    assert set(commands) == {EAST, WEST}  # the episodes did neither
    assert commands[EAST] / commands.total() == pytest.approx(0.7, abs=0.08)


# --- demonstrations ------------------------------------------------------------------------------


def written(path: Path, lines: Sequence[Episode | JobResult]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
    return path


def test_demonstrations_from_a_file_or_a_directory(queue: Queue, tmp_path: Path) -> None:
    """Episodes or job results; without outcomes; at most as many as asked for, in seeded order."""
    lost = [episode(["look"], [0.0], game=game, index=0) for game in "abcdef"]
    result = JobResult(job_id="other-0003", worker="w", seconds=1, episodes=lost[3:])
    written(tmp_path / "given" / "one.jsonl", lost[:3])
    written(tmp_path / "given" / "two.jsonl", [result])
    assert read_episodes(tmp_path / "given") == lost

    registry = Registry(tmp_path / "checkpoints")
    plan = Demonstrations(games=4, source=str(tmp_path / "given"))
    mine = collector(queue, tmp_path / "records")
    for _ in range(2):
        demonstrate(mine, registry, plan)
    taken = mine.records.episodes("demonstrations")
    assert [e.id for e in taken] == [f"demonstrations-0000/{k}" for k in range(4)]
    assert len({e.game.id for e in taken}) == 4
    again = collector(queue, tmp_path / "again")
    demonstrate(again, registry, plan)
    assert again.records.episodes("demonstrations") == taken


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path) -> None:
    seen = Game(id="valid_seen/a/t", split=Split.VALID_SEEN, task_type="t", task="t")
    foreign = episode(["look"], [1.0]).model_copy(update={"game": seen})
    with pytest.raises(DemonstrationsError, match="valid_seen/a/t is no train game"):
        read_episodes(written(tmp_path / "valid.jsonl", [foreign]))
    with pytest.raises(DemonstrationsError, match="neither JSONL nor a policy"):
        read_episodes(tmp_path / "nowhere")
    long = episode(["look"], [1.0])
    turn = long.turns[0].model_copy(update={"observation": "x" * 20_001})
    long = long.model_copy(update={"turns": (turn,)})
    line = episode(["look"], [1.0]).model_dump_json()
    for content, why in (
        ('{"a": 1}', "line 3 is no episode: id: Field required"),
        ('{"a', "line 3 is no JSON"),
        (long.model_dump_json(), "line 3 is no episode: observation: .* 20000 characters"),
    ):
        (tmp_path / "other.jsonl").write_text(f"{line}\n\n{content}\n")
        with pytest.raises(DemonstrationsError, match=why):
            read_episodes(tmp_path / "other.jsonl")
    (tmp_path / "other.jsonl").write_text(f"{line}\n\n")
    assert len(read_episodes(tmp_path / "other.jsonl")) == 1

    records = Records(tmp_path / "records")
    for k, reward in enumerate((0.0, 1.0)):
        job = f"demonstrations-{k:04}"
        played = episode(["look"], [reward]).model_copy(update={"id": f"{job}/0"})
        records.append(JobResult(job_id=job, worker="w", seconds=1, episodes=[played]))
        if reward == 0:
            with pytest.raises(DemonstrationsError, match="none of the 1 demonstrations was won"):
                require_won(records)
    require_won(records)


def test_a_checkpoint_demonstrates(redis_url: str, queue: Queue, tmp_path: Path) -> None:
    """It becomes `expert/0`, is served, and plays as any policy does."""
    walker = Walker()
    jobs: list[RolloutJob] = []

    def work() -> None:
        with Queue(redis_url, "run", name="worker") as taking:
            while (entry := taking.take(timeout=5.0)) is not None:
                assert isinstance(entry.record, RolloutJob)
                jobs.append(entry.record)
                taking.finish(entry, JobResult(job_id=entry.record.id, worker="w", seconds=0))
                if len(jobs) == 2:
                    return

    thread = threading.Thread(target=work)
    thread.start()
    registry = Registry(tmp_path / "checkpoints")
    source = create_small(tmp_path)
    plan = Demonstrations(games=6, source=str(source), sampling=Sampling(temperature=0.25))
    with serving(walker.app()) as policy, serving(Rooms().app()) as env:
        demonstrate(collector(queue, tmp_path / "r", policy=policy, env=env), registry, plan)
    thread.join()
    assert [(job.policy_version, job.sampling.temperature) for job in jobs] == [
        ("expert/0", 0.25)
    ] * 2
    assert walker.version == "expert/0"
    assert registry.exists("expert/0")
