"""What the best of N costs over HTTP: `python -m benchmarks.best_of_n --json`.

Policy and PRM are processes of their own, each a Llama of 0.9 million random parameters; or, with
`--policy-url`, a policy service that runs already and has a PRM. Each episode has `turns` turns of
history, an observation of some 40 tokens a turn and `commands` admissible commands. Random weights
seldom draw an action twice, so that every sample is scored: the worst case.

Latency is measured one request at a time, at the end of an episode whose turn before was asked
for, as an agent does it (`next turn`), and of one that is new (`new episode`). The variants take
turns, so that what else the machine does is the same for all of them. The processor time that both
services took for a request, the mean, hardly depends on what else the machine does.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from agentprm.prompts import load_prompt
from agentprm.protocol import Action, ActRequest, Decoding, Sampling, State, Step
from agentprm.registry import Registry
from benchmarks.conditions import conditions_now
from benchmarks.serving import process_at, served
from services.trainer.tiny.model import create_tiny

PLACES = "cabinet drawer shelf countertop diningtable fridge microwave sinkbasin".split()
THINGS = "mug apple knife plate bread tomato spoon pan".split()


def main(
    policy_url: Annotated[str | None, typer.Option(help="measure this running service")] = None,
    n: int = 16,
    turns: int = 8,
    commands: int = 20,
    reason_tokens: int = 12,  # the act of a trained policy is REASON, ACTION and some ten more
    requests: Annotated[int, typer.Option(help="requests of each kind")] = 30,
    clients: int = 32,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure and print."""
    with contextlib.ExitStack() as stack:
        url, processes = (policy_url, []) if policy_url else stack.enter_context(services())
        http = stack.enter_context(httpx.Client(base_url=url, timeout=300))
        agent = Agent(http, reason_tokens, processes)
        states = [state for seed in "01" for state in episodes(seed, 4, turns, commands)]
        for kind in KINDS:
            agent.ask(kind, states[0], n)
        result = {
            "conditions": {
                "service": agent.get("/health"),
                "n": n,
                "turns": turns,
                "commands": commands,
                "reason_tokens": reason_tokens,
                "requests": requests,
                **conditions_now(),
            },
            "latency": {
                kind: {
                    "next turn": latency(agent, kind, n, requests, turns, commands, warm=True),
                    "new episode": latency(agent, kind, n, requests, turns, commands, warm=False),
                }
                for kind in KINDS
            },
            "throughput": {
                kind: {
                    f"{count} clients": throughput(agent, kind, n, count, requests, turns, commands)
                    for count in (1, clients)
                }
                for kind in KINDS
            },
        }
    typer.echo(json.dumps(result, indent=None if as_json else 2))


@contextlib.contextmanager
def services() -> Iterator[tuple[str, list[psutil.Process]]]:
    """A policy and its PRM with random weights; the policy's URL, and the processes of both."""
    with tempfile.TemporaryDirectory() as directory:
        registry = Registry(Path(directory) / "checkpoints")
        with registry.write("policy/0") as draft:
            create_tiny(draft)
        with registry.write("prm/0") as draft:
            policy = registry.path("policy/0")
            AutoModelForSequenceClassification.from_pretrained(
                policy, num_labels=1
            ).save_pretrained(draft)
            AutoTokenizer.from_pretrained(policy).save_pretrained(draft)
        common = ["--registry", registry.root, "--device", "cpu", "--checkpoint"]
        with (
            served("prm", *common, "prm/0") as prm,
            served("policy", *common, "policy/0", "--prm-url", prm) as url,
        ):
            yield url, [process_at(url), process_at(prm)]


KINDS = ("act, admissible", "act, free", "chat")


class Agent:
    """Asks the service for an action in a state, in one of `KINDS`."""

    def __init__(
        self, http: httpx.Client, reason_tokens: int, processes: Sequence[psutil.Process]
    ) -> None:
        self._http = http
        self._processes = processes
        self._reason_tokens = reason_tokens
        self._template = load_prompt("chat")

    def get(self, path: str) -> object:
        return self._http.get(path).raise_for_status().json()

    def ask(self, kind: str, state: State, n: int, *, prm: bool = True) -> float:
        """Seconds until the answer. Without `prm`, plain samples."""
        path, body = self._request(kind, state, n, prm)
        started = time.perf_counter()
        self._http.post(path, json=body).raise_for_status()
        return time.perf_counter() - started

    def processor_time(self) -> float:
        """Seconds that the services have computed so far; 0 where they are not known."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    def _request(self, kind: str, state: State, n: int, prm: bool) -> tuple[str, dict[str, object]]:
        if kind == "chat":
            messages = [message.model_dump() for message in self._template.messages(state)]
            model = f"best-of-{n}" if prm else "policy"
            options = {} if prm else {"n": n}
            body = {"model": model, "messages": messages, "max_tokens": 2 * self._reason_tokens}
            return "/v1/chat/completions", body | options
        decoding = Decoding.FREE if kind == "act, free" else Decoding.ADMISSIBLE
        tokens = self._reason_tokens * (2 if decoding is Decoding.FREE else 1)
        sampling = Sampling(decoding=decoding, max_tokens=tokens)
        request = ActRequest(states=[state], n=n, prm=prm, sampling=sampling)
        return "/v1/act", request.model_dump(mode="json")


def latency(
    agent: Agent, kind: str, n: int, requests: int, turns: int, commands: int, *, warm: bool
) -> dict[str, dict[str, float]]:
    """Milliseconds of one plain sample, of one scored, and of the best of `n`; and ratios."""
    variants = {"n=1, no prm": (1, False), "n=1": (1, True), f"n={n}": (n, True)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    busy = dict.fromkeys(variants, 0.0)
    for k in range(requests):
        for name, (count, prm) in variants.items():
            before, state = episodes(f"{kind} {warm} {k} {name}", 1, turns, commands)
            if warm:
                agent.ask(kind, before, count, prm=prm)
            started = agent.processor_time()
            times[name].append(agent.ask(kind, state, count, prm=prm))
            busy[name] += agent.processor_time() - started
    p50 = {name: 1000 * statistics.median(values) for name, values in times.items()}
    found = {"p50_ms": with_ratios(p50)}
    if all(busy.values()):
        mean = {name: 1000 * value / requests for name, value in busy.items()}
        found["processor_ms"] = with_ratios(mean)
    return found


def with_ratios(milliseconds: dict[str, float]) -> dict[str, float]:
    plain, one, best = milliseconds.values()
    rounded = {name: round(value, 1) for name, value in milliseconds.items()}
    return rounded | {"ratio": round(best / one, 2), "ratio, no prm": round(best / plain, 2)}


def throughput(
    agent: Agent, kind: str, n: int, clients: int, requests: int, turns: int, commands: int
) -> dict[str, float]:
    """Best-of-`n` requests per second of `clients` that play one episode each, turn by turn."""
    rounds = max(3, requests // clients)
    seeds = [f"{kind} {clients} {k}" for k in range(clients)]
    played = [list(episodes(seed, rounds, turns, commands)) for seed in seeds]

    def play(states: Sequence[State]) -> list[float]:
        return [agent.ask(kind, state, n) for state in states]

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(play, [states[:1] for states in played]))
        started = time.perf_counter()
        times = [t for each in threads.map(play, [s[1:] for s in played]) for t in each]
        elapsed = time.perf_counter() - started
    return {
        "requests_per_second": round(len(times) / elapsed, 1),
        "p50_ms": round(1000 * statistics.median(times)),
        "p95_ms": round(1000 * sorted(times)[int(0.95 * len(times))]),
    }


def episodes(seed: str, further: int, turns: int, commands: int) -> Iterator[State]:
    """The state after `turns` turns of an episode, and the `further` states that follow."""
    rng = random.Random(seed)

    def place() -> str:
        return f"{rng.choice(PLACES)} {rng.randint(1, 20)}"

    def step() -> Step:
        seen = ", ".join(f"a {rng.choice(THINGS)} {rng.randint(1, 9)}" for _ in range(4))
        action = Action(reason=f"find {rng.choice(THINGS)}", command=f"go to {place()}")
        return Step(observation=f"You arrive at {place()}. On it, you see {seen}.", action=action)

    task = f"put a {rng.choice(THINGS)} in {rng.choice(PLACES)}."
    steps = [step() for _ in range(turns + further + 1)]
    for turn in range(turns, turns + further + 1):
        admissible = dict.fromkeys(["look", "inventory"])
        while len(admissible) < commands:
            admissible[f"go to {place()}"] = None
        yield State(
            task=task,
            history=tuple(steps[:turn]),
            observation=steps[turn].observation,
            admissible=tuple(admissible),
        )


if __name__ == "__main__":
    typer.run(main)
