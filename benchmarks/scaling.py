"""What a run puts on Redis and on the network: the figures behind docs/scaling.md.

    python -m benchmarks.scaling records RUN/records/pi_0-rollouts.jsonl
    python -m benchmarks.scaling redis RUN/records/pi_0-rollouts.jsonl
    python -m benchmarks.scaling polling
    python -m benchmarks.scaling wire --env-url URL --policy-url URL

The records are those of a real run. Each prints one JSON object: figures and conditions.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Self

import httpx
import typer

from agentprm.client import EnvClient
from agentprm.protocol import JobResult, PreferenceJob, RolloutJob, Sampling, Split
from agentprm.queue import Queue, QueueSettings
from agentprm.service import configure_logging
from benchmarks.rollout import report, temporary_redis
from services.rollout.player import Player
from services.trainer.rollouts.records import Records

RUN = "bench"
STATES = 32
"""States of a preference job, as in the preset `tiny`."""
BEATING = 8
"""Connections that send heartbeats at a time."""
SETTINGS = QueueSettings(max_jobs=100_000, max_episodes=100_000, claim_after=600)

File = Annotated[Path, typer.Argument(help="the job results of a stage")]

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


def results_in(file: Path) -> list[JobResult]:
    """The job results of a stage of a run."""
    found = Records(file.parent).results(file.stem)
    if not any(result.episodes for result in found):
        raise typer.BadParameter(f"{file} holds no episodes")
    return found


def job_of(result: JobResult, k: int) -> RolloutJob:
    """The job that the result is of; copy `k` has an id of its own."""
    first = result.episodes[0]
    return RolloutJob(
        id=f"copy{k}-{result.job_id}",
        games=[episode.game.id for episode in result.episodes],
        seed=first.seed,
        policy_version=first.turns[0].policy_version,
        sampling=first.provenance.sampling or Sampling(),
    )


def size(record: JobResult | RolloutJob | PreferenceJob) -> int:
    """Bytes of the record as it lies in the stream."""
    return len(record.model_dump_json().encode())


def copies(results: list[JobResult], count: int) -> list[tuple[RolloutJob, JobResult]]:
    """`count` jobs and their results, the given ones again and again."""
    picked = [(results[k % len(results)], k) for k in range(count)]
    return [(job_of(result, k), result) for result, k in picked]


@app.command()
def records(
    file: File, count: Annotated[int, typer.Option(help="jobs passed through")] = 64
) -> None:
    """Bytes of the records; what Redis needs for them, in memory, commands and bandwidth."""
    results = results_in(file)
    pairs = copies(results, count)
    episodes = sum(len(result.episodes) for _, result in pairs)
    played = [episode for result in results for episode in result.episodes]
    states = [episode.state(t) for episode in played for t in range(len(episode.turns))]
    preference = PreferenceJob(
        id="p", attempt="a", states=states[:: max(1, len(states) // STATES)][:STATES],
        seed=0, n=8, prm_version="prm/0",
    )  # fmt: skip
    with temporary_redis() as server, Queue(server.url, RUN, settings=SETTINGS) as queue:
        info = queue._redis.info
        memory = [info()["used_memory"]]
        before = info("everything")
        for job, _ in pairs:
            queue.publish(job)
        memory.append(info()["used_memory"])
        for _, result in pairs:
            entry = queue.take(timeout=10)
            assert entry is not None
            queue.finish(entry, result)
        memory.append(info()["used_memory"])
        while taken := queue.results("episodes", count=16, timeout=0.01):
            queue.acknowledge("episodes", taken)
        memory.append(info()["used_memory"])
        after = info("everything")
        log = info("persistence")["aof_current_size"]
    calls = {
        name.removeprefix("cmdstat_"): round(
            (after[name]["calls"] - before.get(name, {"calls": 0})["calls"]) / count, 2
        )
        for name in after
        if name.startswith("cmdstat_") and name not in ("cmdstat_info", "cmdstat_xgroup")
    }
    report(
        {
            "benchmark": "records",
            "file": file.name,
            "jobs": count,
            "games_a_job": len(results[0].episodes),
            "turns_an_episode": round(statistics.mean(len(e.turns) for e in played), 1),
            "job_bytes": round(statistics.mean(size(job) for job, _ in pairs)),
            "result_bytes_an_episode": round(sum(size(r) for _, r in pairs) / episodes),
            "result_bytes_a_turn": round(
                sum(size(r) for r in results) / sum(len(e.turns) for e in played)
            ),
            f"preference_job_of_{STATES}_states_bytes": size(preference),
            "memory_a_job_outstanding": round((memory[1] - memory[0]) / count),
            "memory_an_episode_waiting": round((memory[2] - memory[1]) / episodes),
            "memory_a_job_once_acknowledged": round((memory[3] - memory[0]) / count),
            "log_bytes_an_episode": round(log / episodes),
            "to_redis_bytes_an_episode": round(
                (after["total_net_input_bytes"] - before["total_net_input_bytes"]) / episodes
            ),
            "from_redis_bytes_an_episode": round(
                (after["total_net_output_bytes"] - before["total_net_output_bytes"]) / episodes
            ),
            "calls_a_job": {name: n for name, n in sorted(calls.items()) if n >= 0.05},
            "redis": after["redis_version"],
        }
    )


@app.command()
def redis(
    file: File,
    count: Annotated[int, typer.Option(help="jobs passed through")] = 1000,
    clients: Annotated[int, typer.Option(help="processes that work side by side")] = 4,
) -> None:
    """Jobs per second through one Redis and through a trainer, the log synced always or not."""
    results = results_in(file)
    figures: dict[str, object] = {}
    for sync in ("always", "everysec"):
        with temporary_redis() as server, Queue(server.url, RUN, settings=SETTINGS) as queue:
            queue._redis.config_set("appendfsync", sync)
            started = time.perf_counter()
            for job, _ in copies(results, count):
                queue.publish(job)
            figures[f"{sync}: publishes_per_second"] = rate(count, started)
            shares = [len(range(k, count, clients)) for k in range(clients)]
            with multiprocessing.get_context("spawn").Pool(clients) as pool:
                pool.starmap(ready, [()] * clients)
                started, spent = time.perf_counter(), cpu(queue)
                pool.starmap(work, [(server.url, results, share) for share in shares], 1)
                figures[f"{sync}: finishes_per_second"] = rate(count, started)
            figures[f"{sync}: redis_cpu_ms_a_job"] = round(1000 * (cpu(queue) - spent) / count, 3)
            with tempfile.TemporaryDirectory() as directory:
                journal = Records(Path(directory))
                started = time.perf_counter()
                own, consumed = time.process_time(), 0
                while taken := queue.results("episodes", count=16, timeout=0.01):
                    for k, entry in enumerate(taken, consumed):
                        named = entry.record.model_copy(update={"job_id": f"stage-{k}"})
                        journal.append(named)
                    queue.acknowledge("episodes", taken)
                    consumed += len(taken)
                assert consumed == count
            figures[f"{sync}: trainer_results_per_second"] = rate(count, started)
            figures[f"{sync}: trainer_cpu_ms_a_result"] = round(
                1000 * (time.process_time() - own) / count, 2
            )
            version = queue._redis.info("server")["redis_version"]
    mean = round(statistics.mean(map(size, results)))
    report(
        {"benchmark": "redis", "jobs": count, "clients": clients, "result_bytes": mean}
        | {"games_a_job": len(results[0].episodes), "redis": version}
        | figures
    )


def ready() -> None:
    """Have the pool's processes started, imports and all."""
    time.sleep(0.5)


def work(url: str, results: list[JobResult], count: int) -> None:
    """A worker that plays nothing."""
    with Queue(url, RUN, settings=SETTINGS) as queue:
        for k in range(count):
            entry = queue.take(timeout=30)
            assert entry is not None
            queue.finish(entry, results[k % len(results)])


def cpu(queue: Queue) -> float:
    """Seconds of processor time that Redis has taken."""
    found = queue._redis.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


def rate(count: int, started: float) -> float:
    return round(count / (time.perf_counter() - started), 1)


@app.command()
def polling(
    rounds: Annotated[int, typer.Option(help="looks at each number of jobs held")] = 200,
) -> None:
    """What workers cost Redis while they play or wait, by the number of jobs that are held.

    A worker that plays sends a heartbeat every 5 s; one that waits looks for abandoned jobs every
    second.
    """
    figures: dict[str, object] = {}
    for held in (10, 100, 1000, 4000):
        with temporary_redis() as server, Queue(server.url, RUN, settings=SETTINGS) as queue:
            for k in range(held):
                queue.publish(RolloutJob(id=f"j-{k}", games=["train/a/b"], seed=k))
            rows = queue._streams.read("jobs", queue.consumer, held, 1.0)
            queue._redis.config_resetstat()
            for _ in range(rounds):
                assert queue._streams.claim("jobs", queue.consumer, 600) is None
            found = queue._redis.info("commandstats")
            figures[f"{held} held: look_microseconds"] = found["cmdstat_xpending"]["usec_per_call"]
            started = time.perf_counter()
            with ThreadPoolExecutor(BEATING) as threads:
                beats = [rows[k % held].id for k in range(1000)]
                assert all(threads.map(queue._touch, beats))
            figures[f"{held} held: heartbeats_per_second"] = rate(1000, started)
            found = queue._redis.info("commandstats")["cmdstat_evalsha"]
            figures[f"{held} held: heartbeat_microseconds"] = found["usec_per_call"]
    report({"benchmark": "polling", "rounds": rounds} | figures)


@app.command()
def wire(
    env_url: Annotated[str, typer.Option(help="the environment service")],
    policy_url: Annotated[str, typer.Option(help="the policy service")],
    jobs: Annotated[int, typer.Option(help="jobs to play, one after the other")] = 2,
    games: Annotated[int, typer.Option(help="games a job, played side by side")] = 16,
    max_steps: int = 30,
    split: Split = Split.TRAIN,
) -> None:
    """Bytes between a worker and the services, HTTP headers included, by turn and by episode."""
    with EnvClient(env_url) as env:
        ids = [game.id for game in env.games(split, limit=jobs * games).games]
    with contextlib.ExitStack() as stack:
        to_env, to_policy = (stack.enter_context(Link(url)) for url in (env_url, policy_url))
        player = Player(to_env.url, to_policy.url)
        started, own = time.perf_counter(), time.thread_time()
        episodes = [
            episode
            for k in range(jobs)
            for episode in player.play(
                RolloutJob(
                    id=f"wire-{os.getpid()}-{k}",
                    games=[ids[(k * games + i) % len(ids)] for i in range(games)],
                    seed=k * games,
                    max_steps=max_steps,
                )
            ).episodes
        ]
        seconds, own = time.perf_counter() - started, time.thread_time() - own
    turns = sum(len(episode.turns) for episode in episodes)
    figures: dict[str, Any] = {
        "benchmark": "wire",
        "episodes": len(episodes),
        "games_a_job": games,
        "turns": turns,
        "turns_per_second": round(turns / seconds, 1),
        "worker_cpu_ms_a_turn": round(1000 * own / turns, 3),
    }
    for name, link in (("env", to_env), ("policy", to_policy)):
        figures[f"to_{name}_bytes_a_turn"] = round(link.sent / turns)
        figures[f"from_{name}_bytes_a_turn"] = round(link.received / turns)
        both = link.sent + link.received
        figures[f"{name}_bytes_an_episode"] = round(both / len(episodes))
    report(figures)


class Link:
    """A TCP relay to a service, in a thread, that counts what passes."""

    def __init__(self, url: str) -> None:
        self.sent = self.received = 0
        self.url = ""
        target = httpx.URL(url)
        self._target = (target.host, target.port)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._done.wait()
        server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        # Clients keep their connections; the end of the measurement ends them.
        with (
            contextlib.suppress(asyncio.CancelledError),
            contextlib.closing(writer),
            contextlib.closing(back),
        ):
            await asyncio.gather(self._out(reader, back), self._in(there, writer))

    async def _out(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            self.sent += len(data)
            target.write(data)
        target.write_eof()

    async def _in(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            self.received += len(data)
            target.write(data)
        target.write_eof()


if __name__ == "__main__":
    configure_logging("benchmark")
    app()
