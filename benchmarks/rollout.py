"""Rollout workers: episodes per second against running services, and what the queue costs.

    python -m benchmarks.rollout queue
    python -m benchmarks.rollout episodes --env-url URL --policy-url URL [--workers 2]

Both print one JSON object: the figures and the conditions they were measured under.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer

from agentprm.client import EnvClient, PolicyClient
from agentprm.protocol import JobResult, RolloutJob, Sampling, Split
from agentprm.queue import Queue, QueueSettings
from agentprm.redis_server import RedisServer
from benchmarks.conditions import conditions_now

RESULT_TIMEOUT = 600.0
"""Seconds to wait for a result before giving up."""

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


def report(figures: dict[str, object]) -> None:
    print(orjson.dumps({**figures, **conditions_now()}, option=orjson.OPT_INDENT_2).decode())


@contextlib.contextmanager
def temporary_redis() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as directory, RedisServer(Path(directory)) as server:
        yield server


def wait_until_ready(workers: list[subprocess.Popen[str]]) -> None:
    """The workers' start is not measured; their logs go on to our stderr."""
    for worker in workers:
        assert worker.stderr is not None
        for line in worker.stderr:
            sys.stderr.write(line)
            if "worker ready" in line:
                break
        threading.Thread(target=sys.stderr.writelines, args=(worker.stderr,), daemon=True).start()


@app.command()
def queue(
    jobs: Annotated[int, typer.Option(help="jobs to pass through")] = 1000,
    kilobytes: Annotated[int, typer.Option(help="size of a result")] = 100,
) -> None:
    """Publish, take, finish, consume and acknowledge jobs, one after the other."""
    settings = QueueSettings(max_jobs=jobs)
    with temporary_redis() as server, Queue(server.url, "bench", settings=settings) as queue:
        started = time.perf_counter()
        for i in range(jobs):
            queue.publish(RolloutJob(id=f"j/{i}", games=["train/a/b"] * 16, seed=i))
        published = time.perf_counter()
        for _ in range(jobs):
            entry = queue.take(timeout=10)
            assert entry is not None
            filler = "x" * (1000 * kilobytes)
            queue.finish(entry, JobResult(job_id=entry.record.id, worker=filler, seconds=0))
            queue.acknowledge("episodes", queue.results("episodes", count=1, timeout=10))
        ended = time.perf_counter()
    report(
        {
            "benchmark": "queue",
            "jobs": jobs,
            "result_kilobytes": kilobytes,
            "redis": "embedded, Unix socket, appendfsync always",
            "publish_per_second": round(jobs / (published - started), 1),
            "take_to_acknowledge_per_second": round(jobs / (ended - published), 1),
        }
    )


@app.command()
def episodes(
    env_url: Annotated[str, typer.Option(help="the environment service")],
    policy_url: Annotated[str, typer.Option(help="the policy service")],
    workers: Annotated[int, typer.Option(help="worker processes")] = 1,
    jobs: Annotated[int, typer.Option(help="jobs to play")] = 4,
    games: Annotated[int, typer.Option(help="games a job, played side by side")] = 16,
    split: Split = Split.TRAIN,
    expert: Annotated[bool, typer.Option(help="the expert plays, not the policy")] = False,
    best_of: Annotated[int, typer.Option(help="N of Best-of-N")] = 1,
    temperature: float = 1.0,
    max_steps: int = 30,
) -> None:
    """Play games by worker processes; the clock runs from the first job to the last result."""
    with EnvClient(env_url) as env, PolicyClient(policy_url) as policy:
        ids = [game.id for game in env.games(split, limit=jobs * games).games]
        engine = env.health().details
        version = "expert" if expert else policy.health().version
    played: list[JobResult] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(temporary_redis())
        queue = stack.enter_context(Queue(server.url, "bench"))
        flags = ["--redis-url", server.url, "--run", "bench"]
        flags += ["--env-url", env_url, "--policy-url", policy_url]
        processes: list[subprocess.Popen[str]] = []
        for _ in range(workers):
            command = [sys.executable, "-m", "services.rollout", *flags]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            processes.append(process)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        wait_until_ready(processes)
        started = time.perf_counter()
        for i in range(jobs):
            queue.publish(
                RolloutJob(
                    id=f"j/{i}",
                    games=[ids[(i * games + k) % len(ids)] for k in range(games)],
                    seed=i * games,
                    actor="expert" if expert else "policy",
                    sampling=Sampling(temperature=temperature),
                    best_of=best_of,
                    max_steps=max_steps,
                )
            )
        while len(played) < jobs:
            entries = queue.results("episodes", count=1, timeout=RESULT_TIMEOUT)
            if not entries:
                sys.exit(f"no result within {RESULT_TIMEOUT:.0f} s; dead jobs: {queue.dead()}")
            played += [entry.record for entry in entries]
            queue.acknowledge("episodes", entries)
        seconds = time.perf_counter() - started
    all_played = [episode for result in played for episode in result.episodes]
    turns = sum(len(episode.turns) for episode in all_played)
    report(
        {
            "benchmark": "episodes",
            "episodes_per_second": round(len(all_played) / seconds, 3),
            "turns_per_second": round(turns / seconds, 2),
            "seconds": round(seconds, 1),
            "episodes": len(all_played),
            "won": sum(episode.won for episode in all_played),
            "turns": turns,
            "workers": workers,
            "games_a_job": games,
            "split": split,
            "policy": version,
            "best_of": best_of,
            "temperature": temperature,
            "max_steps": max_steps,
            "engine": engine,
        }
    )


if __name__ == "__main__":
    app()
