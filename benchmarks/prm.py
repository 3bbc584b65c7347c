"""PRM scores per second, and how long a swap takes.

    python -m benchmarks.prm [--quick] [--json]

The model is a 0.9 M Llama with random weights; the figures are medians over repetitions.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import orjson
import torch
import transformers
from rich.console import Console
from rich.table import Table

from agentprm.client import AsyncPRMClient, PRMClient
from agentprm.prompts import load_prompt
from agentprm.protocol import Choice, Pair, ScoreRequest, State, Transcript
from agentprm.registry import Registry
from services.prm.scorer import Scorer
from tests.scorers import episode, tiny_scorer

TURNS = 20
CANDIDATES = 16
CLIENTS = 32


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    name: str
    scores_per_second: float | None
    seconds: float


def median_seconds(call: Callable[[], object], repetitions: int) -> float:
    """Seconds that `call` takes, after one call to warm up."""
    call()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def turn(played: Transcript, t: int) -> Pair:
    """Turn `t` of an episode as a state-action pair."""
    step = played.steps[t]
    history = tuple(played.steps[:t])
    state = State(task=played.task, history=history, observation=step.observation)
    return Pair(state=state, action=step.action)


def in_process(scorer: Scorer, repetitions: int) -> Iterator[Figure]:
    """Without HTTP: tokenising and computing, on one thread."""

    def score(request: ScoreRequest) -> list[list[float]]:
        return scorer.score(scorer.plan(request).rows)

    def measure(name: str, scores: int, call: Callable[[], object]) -> Figure:
        seconds = median_seconds(call, repetitions)
        return Figure(name, scores / seconds, seconds)

    played = episode(TURNS)
    turns = [ScoreRequest(pairs=[turn(played, t)]) for t in range(TURNS)]
    yield measure(
        f"{TURNS}-turn episode, all turns in one pass",
        TURNS,
        lambda: score(ScoreRequest(transcripts=[played])),
    )
    yield measure(
        f"{TURNS}-turn episode, one call a turn", TURNS, lambda: [score(one) for one in turns]
    )
    yield measure(f"{TURNS}-turn episode, its last turn alone", 1, lambda: score(turns[-1]))

    state = turn(played, TURNS - 1).state
    actions = [episode(1, seed).steps[0].action for seed in range(CANDIDATES)]
    packed = ScoreRequest(choices=[Choice(state=state, actions=actions)])
    separate = [ScoreRequest(pairs=[Pair(state=state, action=action)]) for action in actions]
    rows = [row for one in separate for row in scorer.plan(one).rows]
    yield measure(f"{CANDIDATES} actions in one state, packed", CANDIDATES, lambda: score(packed))
    yield measure(
        f"{CANDIDATES} actions in one state, separate rows of a batch",
        CANDIDATES,
        lambda: scorer.score(rows),
    )


@contextmanager
def server(registry: Path) -> Iterator[str]:
    """A PRM process on `registry`, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--port", str(port), "--registry", str(registry), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "services.prm", *flags])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


async def clients(url: str, asked: list[ScoreRequest], count: int) -> float:
    """Seconds until `count` clients, one request at a time each, have all answers."""
    waiting = iter(asked)

    async def client(prm: AsyncPRMClient) -> None:
        for request in waiting:
            await prm.score(request)

    async with AsyncPRMClient(url) as prm:
        started = time.perf_counter()
        await asyncio.gather(*(client(prm) for _ in range(count)))
        return time.perf_counter() - started


def over_http(registry: Path, repetitions: int) -> Iterator[Figure]:
    """Through a server, clients in this process."""
    with server(registry) as url, PRMClient(url) as prm:
        prm.load("prm/0")
        shapes = {
            f"{TURNS}-turn episodes": [
                ScoreRequest(transcripts=[episode(TURNS, k)]) for k in range(CLIENTS)
            ],
            "pairs at turn 1": [
                ScoreRequest(pairs=[turn(episode(1, k), 0)]) for k in range(CLIENTS * 4)
            ],
        }
        for shape, asked in shapes.items():
            scores = TURNS if "episodes" in shape else 1
            for count in (1, CLIENTS):
                asyncio.run(clients(url, asked, count))
                times = [asyncio.run(clients(url, asked, count)) for _ in range(repetitions)]
                seconds = statistics.median(times)
                name = f"HTTP, {shape}, {count} client{'s' * (count > 1)}"
                yield Figure(name, scores * len(asked) / seconds, seconds)
        swaps = [prm.load(f"prm/{k % 2}") for k in range(1, 2 * repetitions + 1)]
        yield Figure("swap, from request to answer", None, statistics.median(
            swap.load_seconds for swap in swaps))  # fmt: skip
        yield Figure("swap, pause", None, statistics.median(s.pause_seconds for s in swaps))


def main() -> None:
    """Print conditions and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one repetition of each")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    options = parser.parse_args()
    repetitions = 1 if options.quick else 7
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder))
        for k in range(2):
            with registry.write(f"prm/{k}") as draft:
                tiny_scorer(draft, k, width=128, layers=4, heads=4, feedforward=384)
        scorer = Scorer(registry.path("prm/0"), load_prompt("chat"), device="cpu")
        tokens = len(scorer.plan(ScoreRequest(transcripts=[episode(TURNS)])).rows[0])
        conditions = {
            "model": f"Llama, {scorer.parameters} parameters, {scorer.dtype}, random weights",
            "episode": f"{TURNS} turns, {tokens} tokens with the prompt",
            "threads": 1,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "repetitions": repetitions,
            "load_average": round(os.getloadavg()[0], 2),
        }
        figures = [*in_process(scorer, repetitions), *over_http(registry.root, repetitions)]

    if options.json:
        result = {"conditions": conditions, "figures": [asdict(figure) for figure in figures]}
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    table = Table("what", "scores/s", "ms", title="PRM service")
    for figure in figures:
        rate = "" if figure.scores_per_second is None else f"{figure.scores_per_second:,.0f}"
        table.add_row(figure.name, rate, f"{1000 * figure.seconds:,.2f}")
    console = Console(width=100)
    for name, value in conditions.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
