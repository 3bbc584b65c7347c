"""The environment service over HTTP, compiled beside TextWorld: steps, single steps, forks, memory.

    python -m benchmarks.env_http --games $ALFWORLD_DATA

The server has one core and the client another, where there are two; TextWorld's processes share
the server's. Sessions wander: they go, look, open, close and examine, so that none is won. Batches
are sent by a plain client (httpx, orjson), whose own time counts; single steps by `EnvClient`.
Memory is what the server process grows by, recorded answers included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import orjson
import psutil

from agentprm.client import EnvClient
from agentprm.protocol import MAX_STEPS, CreateSessions, Session, Split, StepSession, StepSessions
from benchmarks.conditions import conditions_now
from benchmarks.serving import process_at, served

BATCH = 64
TEXTWORLD_BATCH = 4
SESSIONS = 1024
"""Sessions over which memory is measured."""
TURNS = 30
"""Turns that each of them has played."""
FORKS = 256
CAPACITY = 4096
WANDERING = ("go ", "look", "open ", "close ", "examine ")


@contextmanager
def environment(games: Path, engine: str) -> Iterator[tuple[EnvClient, str, psutil.Process]]:
    """A server of its own on the first core, and a client of it on the second."""
    flags = ["--data", games, "--engine", engine]
    flags += ["--pool", TEXTWORLD_BATCH + 1, "--capacity", CAPACITY]
    pin(0)  # what is started is kept to the core of who starts it
    with served("env", *flags) as url, EnvClient(url) as client:
        pin(1)
        yield client, url, process_at(url)


def pin(core: int) -> None:
    """Keep this process on one of the cores, where there are two."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


def wander(admissible: list[str], rng: random.Random) -> str:
    return rng.choice([command for command in admissible if command.startswith(WANDERING)])


def create(client: EnvClient, count: int, seed: int) -> list[Session]:
    request = CreateSessions(split=Split.VALID_SEEN, count=count, seed=seed, max_steps=MAX_STEPS)
    return client.create(request)


def batches(
    client: EnvClient, url: str, server: psutil.Process, size: int, turns: int, seed: int
) -> dict[str, float]:
    """Steps a second, seconds of the server's core a step, and bytes of an answer a step."""
    rng = random.Random(seed)
    sessions = create(client, size, seed)
    admissible = [session.admissible for session in sessions]
    received = 0
    with httpx.Client(base_url=url, headers={"content-type": "application/json"}) as http:
        busy, begun = sum(server.cpu_times()[:2]), time.perf_counter()
        for turn in range(turns):
            steps = [
                {"id": session.id, "turn": turn, "command": wander(commands, rng)}
                for session, commands in zip(sessions, admissible, strict=True)
            ]
            answer = http.post("/v1/steps", content=orjson.dumps({"steps": steps}), timeout=300)
            received += len(answer.content)
            results = orjson.loads(answer.raise_for_status().content)["results"]
            admissible = [result["session"]["admissible"] for result in results]
        seconds = time.perf_counter() - begun
        busy = sum(server.cpu_times()[:2]) - busy
    client.close_sessions([session.id for session in sessions])
    played = size * turns
    return {
        "batch": size,
        "steps_per_second": played / seconds,
        "server_cpu_seconds_per_step": busy / played,
        "bytes_per_step": received / played,
    }


def single_steps(client: EnvClient, turns: int, seed: int) -> dict[str, float]:
    """Seconds of a step of one session, by the client's clock."""
    rng = random.Random(seed)
    (session,) = create(client, 1, seed)
    seconds = []
    for turn in range(turns):
        command = wander(session.admissible, rng)
        steps = StepSessions(steps=[StepSession(id=session.id, turn=turn, command=command)])
        begun = time.perf_counter()
        (result,) = client.step(steps)
        seconds.append(time.perf_counter() - begun)
        assert result.session is not None
        session = result.session
    client.close_sessions([session.id])
    return {"p50_seconds": median(seconds), "p95_seconds": quantiles(seconds, n=20)[-1]}


def forks(client: EnvClient, count: int, repeats: int, seed: int) -> dict[str, float]:
    """Seconds a copy: of a request for `count` copies of a session ten turns old, and of their
    first step, before which a copy in TextWorld repeats the turns of its original.
    """
    rng = random.Random(seed)
    (session,) = create(client, 1, seed)
    for turn in range(10):
        step = StepSession(id=session.id, turn=turn, command=wander(session.admissible, rng))
        (result,) = client.step(StepSessions(steps=[step]))
        assert result.session is not None
        session = result.session
    seconds: dict[str, list[float]] = {"fork_seconds": [], "first_step_seconds": []}
    for _ in range(repeats):
        begun = time.perf_counter()
        copies = client.fork(session.id, count)
        forked = time.perf_counter()
        first = [StepSession(id=copy.id, turn=10, command="look") for copy in copies]
        client.step(StepSessions(steps=first))
        seconds["fork_seconds"].append((forked - begun) / count)
        seconds["first_step_seconds"].append((time.perf_counter() - forked) / count)
        client.close_sessions([copy.id for copy in copies])
    client.close_sessions([session.id])
    return {what: median(x) for what, x in seconds.items()}


def session_bytes(client: EnvClient, server: psutil.Process, seed: int) -> float:
    """Bytes a session after `TURNS` turns, its game having been played before."""

    def play() -> list[str]:
        rng = random.Random(seed)
        ids = []
        for _ in range(SESSIONS // BATCH):
            sessions = create(client, BATCH, seed)
            ids += [session.id for session in sessions]
            for turn in range(TURNS):
                steps = [
                    StepSession(id=s.id, turn=turn, command=wander(s.admissible, rng))
                    for s in sessions
                ]
                results = client.step(StepSessions(steps=steps))
                sessions = [result.session for result in results if result.session is not None]
        return ids

    play()
    before = server.memory_info().rss
    play()
    grown: int = server.memory_info().rss - before
    return grown / SESSIONS


def measure(games: Path, seed: int, batch_turns: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with environment(games, "compiled") as (client, url, server):
        batches(client, url, server, BATCH, batch_turns, seed)  # warms up: the games are parsed
        found["compiled"] = {
            **batches(client, url, server, BATCH, batch_turns, seed),
            **single_steps(client, MAX_STEPS, seed),
            **forks(client, FORKS, 10, seed),
            "session_bytes": session_bytes(client, server, seed),
        }
    with environment(games, "textworld") as (client, url, server):
        found["textworld"] = {
            **batches(client, url, server, TEXTWORLD_BATCH, 10, seed),
            **single_steps(client, 20, seed),
            **forks(client, 1, 3, seed),
        }
    return found


def show(found: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in found["conditions"].items()))
    for engine in ("compiled", "textworld"):
        x = found[engine]
        print(
            f"{engine}: {x['steps_per_second']:,.0f} steps/s in batches of {x['batch']}, "
            f"{x['bytes_per_step']:,.0f} bytes each; "
            f"single step p50 {x['p50_seconds'] * 1e3:.2f} ms, "
            f"p95 {x['p95_seconds'] * 1e3:.2f} ms; "
            f"fork {x['fork_seconds'] * 1e6:,.0f} µs, "
            f"its first step {x['first_step_seconds'] * 1e6:,.0f} µs"
        )
    x = found["compiled"]
    print(
        f"compiled: {x['server_cpu_seconds_per_step'] * 1e6:.0f} µs of the server's core a step; "
        f"{x['session_bytes'] / 1024:.1f} KiB a session after {TURNS} turns"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--games", type=Path, default=os.environ.get("ALFWORLD_DATA"))
    parser.add_argument("--turns", type=int, default=MAX_STEPS, help=f"at most {MAX_STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.games is None:
        parser.error("give --games or set $ALFWORLD_DATA")
    found = measure(given.games, given.seed, given.turns)
    found["conditions"] = {
        "turns": given.turns,
        "seed": given.seed,
        **conditions_now(),
    }
    if given.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
