"""PRM requests per second by their shape, and how long a swap takes.

    python -m benchmarks.prm [--quick] [--json]

The model is a 0.9 M Llama with random weights; the figures are medians over repetitions, and every
repetition asks for episodes that were never seen before.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import httpx
import orjson
import torch
import transformers
from rich.console import Console
from rich.table import Table

from agentprm.client import PRMClient
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Choice, Pair, ScoreRequest, State, Step, Transcript
from agentprm.registry import Registry
from benchmarks.conditions import conditions_now
from benchmarks.serving import served
from services.prm.scorer import Scorer
from tests.scorers import tiny_scorer

TURNS = 20
CANDIDATES = 16
CLIENTS = 32
REQUESTS = 320
"""About how many are sent in one measurement; at least what one client has to send."""


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    name: str
    requests_per_second: float | None
    seconds: float
    """To compute it in process; of the server's processor a request, through HTTP."""


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


def fresh(turns: int, seed: int) -> Transcript:
    """An episode like `tests.scorers.episode`, of random numbers: no two are alike."""
    chance = random.Random(seed)

    def numbers(count: int) -> str:
        return " ".join(str(chance.randrange(40)) for _ in range(count))

    steps = [
        Step(
            observation=f"you arrive at cabinet {numbers(2)} . on it you see a mug {numbers(2)} .",
            action=Action(reason=f"find mug {numbers(1)}", command=f"go to drawer {numbers(2)}"),
        )
        for _ in range(turns)
    ]
    return Transcript(task=f"put a mug {numbers(2)} in cabinet", steps=steps)


def candidates(played: Transcript, t: int, seed: int) -> Choice:
    """Turn `t` with the action that was taken and others."""
    others = [step.action for step in fresh(CANDIDATES - 1, seed).steps]
    one = turn(played, t)
    return Choice(state=one.state, actions=[one.action, *others])


SHAPES: dict[str, Callable[[int], list[ScoreRequest]]] = {
    "one action in a first state": lambda k: [ScoreRequest(pairs=[turn(fresh(1, k), 0)])],
    f"an agent's {TURNS} turns, one action each": lambda k: [
        ScoreRequest(pairs=[turn(fresh(TURNS, k), t)]) for t in range(TURNS)
    ],
    f"{CANDIDATES} actions in one state, a request each": lambda k: [
        ScoreRequest(pairs=[Pair(state=choice.state, action=action)])
        for choice in [candidates(fresh(8, k), 7, -k)]
        for action in choice.actions
    ],
    f"an agent's 8 turns, {CANDIDATES} actions each": lambda k: [
        ScoreRequest(choices=[candidates(fresh(8, k), t, -10 * k - t)]) for t in range(8)
    ],
    f"whole {TURNS}-turn episodes": lambda k: [ScoreRequest(transcripts=[fresh(TURNS, k)])],
}
"""What one client sends, request after request, given a number that no client had before."""


def in_process(registry: Path, repetitions: int) -> Iterator[Figure]:
    """Without HTTP: tokenising and computing, on one thread, nothing kept between calls."""
    scorer = Scorer(registry / "prm/0", load_prompt("chat"), device="cpu", cache_bytes=0)
    requests = {
        f"{TURNS}-turn episode, all turns in one pass": [
            ScoreRequest(transcripts=[fresh(TURNS, 0)])
        ],
        f"{TURNS}-turn episode, its last turn alone": [
            ScoreRequest(pairs=[turn(fresh(TURNS, 0), TURNS - 1)])
        ],
        f"{TURNS}-turn episode, a call a turn": [
            ScoreRequest(pairs=[turn(fresh(TURNS, 0), t)]) for t in range(TURNS)
        ],
        f"{CANDIDATES} actions in one state, packed": [
            ScoreRequest(choices=[candidates(fresh(TURNS, 0), TURNS - 1, 1)])
        ],
    }

    def score(asked: list[ScoreRequest]) -> None:
        for one in asked:
            scorer.score(scorer.plan(one).rows)

    for name, asked in requests.items():
        seconds = median_seconds(partial(score, asked), repetitions)
        yield Figure(name, None, seconds)


def server(registry: Path, *more: str) -> AbstractContextManager[str]:
    """A PRM process on `registry` that serves prm/0, and its address."""
    flags = ["--registry", str(registry), "--checkpoint", "prm/0", "--device", "cpu"]
    return served("prm", *flags, *more)


async def client(port: int, bodies: list[bytes]) -> None:
    """Sends a request after the answer to the last, at little cost to the machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        writer.write(
            b"POST /v1/score HTTP/1.1\r\nHost: prm\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        if b" 200 " not in head[:16]:
            raise RuntimeError(head.decode())
    writer.close()


async def load(port: int, work: list[list[bytes]]) -> float:
    """Seconds until every client has all its answers."""
    started = time.perf_counter()
    await asyncio.gather(*(client(port, bodies) for bodies in work))
    return time.perf_counter() - started


def cpu_seconds(url: str) -> float:
    """What the server has computed for."""
    text = httpx.get(f"{url}/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("process_cpu_seconds_total ")]
    return float(line.split()[1])


def over_http(registry: Path, repetitions: int) -> Iterator[Figure]:
    """One client and many by turns, on one server that keeps nothing and on one that does."""
    numbers = itertools.count(1)
    for kept, flags in (("nothing kept", ("--cache-gib", "0")), ("kept", ())):
        with server(registry, *flags) as url:
            port = int(url.rsplit(":", 1)[1])
            for shape, make in SHAPES.items():
                found: dict[int, list[tuple[float, float]]] = {1: [], CLIENTS: []}
                for _ in range(repetitions):
                    for count, figures in found.items():
                        share = max(1, REQUESTS // len(make(0)) // count)
                        work = [
                            [
                                request.model_dump_json().encode()
                                for _ in range(share)
                                for request in make(next(numbers))
                            ]
                            for _ in range(count)
                        ]
                        before = cpu_seconds(url)
                        seconds = asyncio.run(load(port, work))
                        total = sum(map(len, work))
                        figures.append((total / seconds, (cpu_seconds(url) - before) / total))
                for count, figures in found.items():
                    rate, cpu = (statistics.median(values) for values in zip(*figures, strict=True))
                    yield Figure(f"{shape}, {kept}, {count} client{'s' * (count > 1)}", rate, cpu)


def swaps(registry: Path, repetitions: int) -> Iterator[Figure]:
    """How long a load takes, and for how long requests wait."""
    with server(registry) as url, PRMClient(url) as prm:
        loaded = [prm.load(f"prm/{k % 2}") for k in range(1, 2 * repetitions + 1)]
    yield Figure("swap, all", None, statistics.median(s.load_seconds for s in loaded))
    yield Figure("swap, pause", None, statistics.median(s.pause_seconds for s in loaded))


def main() -> None:
    """Print conditions and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one repetition of each")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    options = parser.parse_args()
    repetitions = 1 if options.quick else 5
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder))
        for k in range(2):
            with registry.write(f"prm/{k}") as draft:
                tiny_scorer(draft, k, width=128, layers=4, heads=4, feedforward=384)
        scorer = Scorer(registry.path("prm/0"), load_prompt("chat"), device="cpu")
        tokens = len(scorer.plan(ScoreRequest(transcripts=[fresh(TURNS, 0)])).rows[0])
        known: dict[str, object] = {
            "model": f"Llama, {scorer.parameters} parameters, {scorer.dtype}, random weights",
            "episode": f"{TURNS} turns, {tokens} tokens with the prompt",
            "threads": 1,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "repetitions": repetitions,
        }
        figures = [
            *in_process(registry.root, repetitions),
            *over_http(registry.root, repetitions),
            *swaps(registry.root, repetitions),
        ]

    known |= conditions_now()
    if options.json:
        result = {"conditions": known, "figures": [asdict(figure) for figure in figures]}
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    table = Table("what", "requests/s", "ms", title="PRM service")
    for figure in figures:
        rate = "" if figure.requests_per_second is None else f"{figure.requests_per_second:,.0f}"
        table.add_row(figure.name, rate, f"{1000 * figure.seconds:,.2f}")
    console = Console(width=100)
    for name, value in known.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
