"""Swaps under load: no request is lost, no answer mixes versions, memory does not grow.

Every version has weights of its own, so each answer can be compared with what the version that it
claims is known to give.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from agentprm.client import PolicyClient, PRMClient
from agentprm.protocol import (
    Action,
    ActRequest,
    ActResponse,
    Choice,
    Loaded,
    Sampling,
    ScoreRequest,
    ScoreResponse,
    State,
    Step,
)
from agentprm.registry import Registry
from tests.models import tiny_causal_lm
from tests.processes import service
from tests.scorers import episode, tiny_scorer

CLIENTS = 32
SWAPS = 100
GROWTH = 64 * 2**20
"""Most bytes that a process may grow by between its tenth swap and its hundredth. A leak of one
copy of the weights a swap (2 MiB) would be 150 MiB; caches and glibc's arenas take some 30."""

STATES = [
    State(
        task=f"put some mug in cabinet {k}",
        history=(
            Step(
                observation="You are in the middle of a room. You see a cabinet 1.",
                action=Action(reason="find mug", command="go to cabinet 1"),
            ),
        )
        * (k % 2),
        observation="You arrive at cabinet 1. You see a mug 1.",
        admissible=("go to cabinet 1", "go to cabinet 2", "take mug 1 from cabinet 1", "look"),
    )
    for k in range(3)
]
ACTS = [
    ActRequest(states=[STATES[k]], n=3, prm=True, sampling=Sampling(max_tokens=4), seed=k)
    for k in range(3)
]
SCORES = [
    ScoreRequest(
        transcripts=[episode(1 + k % 2, k)],
        choices=[
            Choice(
                state=STATES[k],
                actions=[Action(reason="find mug", command=c) for c in STATES[k].admissible],
            )
        ],
    )
    for k in range(3)
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    for k in range(2):
        with registry.write(f"prm/{k}") as draft:
            tiny_scorer(draft, k, width=128, feedforward=384)
        registry.adopt(tiny_causal_lm(tmp_path_factory.mktemp("model"), k, size=128), f"policy/{k}")
    return registry


@dataclass
class Swapper:
    """Has one service alternate between two versions, and knows what it may have served when."""

    url: str
    versions: tuple[str, str]
    pid: int
    asked: list[str] = field(default_factory=list)
    done: int = 0
    rss: list[int] = field(default_factory=list)

    async def swap(self, http: httpx.AsyncClient) -> None:
        version = self.versions[len(self.asked) % 2]
        self.asked.append(version)
        answer = await http.post(f"{self.url}/v1/checkpoints/load", json={"version": version})
        assert answer.status_code == 200, answer.text
        loaded = Loaded.model_validate_json(answer.content)
        assert loaded.version == version
        self.done += 1
        self.rss.append(psutil.Process(self.pid).memory_info().rss)

    def possible(self, done_before: int) -> set[str]:
        """What may answer a request that began when `done_before` swaps were done."""
        return set(self.asked[done_before - 1 :])

    def growth(self) -> int:
        return min(self.rss[-5:]) - min(self.rss[5:10])


async def under_load(
    client: Callable[[httpx.AsyncClient, int], Awaitable[None]],
    swappers: Sequence[Swapper],
    swaps: int,
) -> None:
    """Run `CLIENTS` clients until the first of the swappers has swapped as often as asked."""
    limits = httpx.Limits(max_connections=CLIENTS + len(swappers))
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(timeout=60, limits=limits, headers=headers) as http:
        for swapper in swappers:
            await swapper.swap(http)
        stopped = asyncio.Event()

        async def ask(number: int) -> int:
            count = 0
            while not stopped.is_set():
                await client(http, number + count)
                count += 1
            return count

        async def swap(swapper: Swapper) -> None:
            while swapper.done < swaps and not stopped.is_set():
                await swapper.swap(http)

        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(ask(k)) for k in range(CLIENTS)]
            others = [group.create_task(swap(swapper)) for swapper in swappers[1:]]
            await swap(swappers[0])
            stopped.set()
            await asyncio.gather(*others)
        assert min(task.result() for task in clients) > 0


def same(found: Sequence[float], expected: Sequence[float]) -> bool:
    return list(found) == pytest.approx(list(expected), abs=1e-4)


def numbers(answer: ScoreResponse) -> list[float]:
    return [q for qs in (answer.pairs, *answer.choices, *answer.transcripts) for q in qs]


@pytest.fixture(scope="module")
def prm(registry: Registry) -> Iterator[tuple[int, str]]:
    with service("prm", "--registry", registry.root, "--device", "cpu") as (process, url):
        yield process.pid, url


def test_a_hundred_swaps_of_the_prm(prm: tuple[int, str]) -> None:
    pid, url = prm
    versions = ("prm/0", "prm/1")
    expected: dict[str, list[list[float]]] = {}
    with PRMClient(url, deadline=60) as direct:
        for version in versions:
            direct.load(version)
            expected[version] = [numbers(direct.score(request)) for request in SCORES]
    assert not same(expected["prm/0"][0], expected["prm/1"][0])
    bodies = [request.model_dump_json().encode() for request in SCORES]
    swapper = Swapper(url, versions, pid)
    seen: Counter[str] = Counter()

    async def client(http: httpx.AsyncClient, number: int) -> None:
        which, before = number % len(bodies), swapper.done
        answer = await http.post(f"{url}/v1/score", content=bodies[which])
        assert answer.status_code == 200, answer.text
        scored = ScoreResponse.model_validate_json(answer.content)
        assert scored.prm_version in swapper.possible(before)
        assert same(numbers(scored), expected[scored.prm_version][which]), scored.prm_version
        seen[scored.prm_version] += 1

    asyncio.run(under_load(client, [swapper], SWAPS))
    assert min(seen[version] for version in versions) > CLIENTS
    assert swapper.growth() < GROWTH


def test_requests_that_come_while_the_service_is_stalled_are_answered(
    prm: tuple[int, str],
) -> None:
    pid, url = prm
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=60)) for _ in range(8)]
        assert all(client.get("/health").status_code == 200 for client in clients)
        with ThreadPoolExecutor(len(clients)) as threads:
            os.kill(pid, signal.SIGSTOP)
            try:
                answers = [threads.submit(client.get, "/health") for client in clients]
                time.sleep(6)  # longer than uvicorn's own bound for an idle connection
            finally:
                os.kill(pid, signal.SIGCONT)
            assert [answer.result().status_code for answer in answers] == [200] * len(clients)


def test_a_hundred_swaps_of_the_policy_while_the_prm_beneath_it_is_swapped(
    registry: Registry, prm: tuple[int, str]
) -> None:
    prm_pid, prm_url = prm
    flags = ["--registry", registry.root, "--device", "cpu", "--prm-url", prm_url]
    with service("policy", *flags) as (process, url):
        policies = Swapper(url, ("policy/0", "policy/1"), process.pid)
        prms = Swapper(prm_url, ("prm/0", "prm/1"), prm_pid)
        expected: dict[tuple[str, str | None], list[ActResponse]] = {}
        with PolicyClient(url, deadline=60) as policy, PRMClient(prm_url, deadline=60) as scorer:
            for q in prms.versions:
                scorer.load(q)
                for pi in policies.versions:
                    policy.load(pi)
                    expected[pi, q] = [policy.act(request) for request in ACTS]
        bodies = [request.model_dump_json().encode() for request in ACTS]
        seen: Counter[tuple[str, str | None]] = Counter()

        async def client(http: httpx.AsyncClient, number: int) -> None:
            which, before = number % len(bodies), (policies.done, prms.done)
            answer = await http.post(f"{url}/v1/act", content=bodies[which])
            assert answer.status_code == 200, answer.text
            acted = ActResponse.model_validate_json(answer.content)
            assert acted.policy_version in policies.possible(before[0])
            assert acted.prm_version in prms.possible(before[1])
            key = (acted.policy_version, acted.prm_version)
            assert_same_actions(acted, expected[key][which])
            seen[key] += 1

        asyncio.run(under_load(client, [policies, prms], SWAPS))
        assert len(seen) == 4, seen
        assert policies.growth() < GROWTH


def assert_same_actions(found: ActResponse, expected: ActResponse) -> None:
    for mine, theirs in zip(found.results, expected.results, strict=True):
        assert mine.best.q == pytest.approx(max(c.q or -1 for c in theirs.candidates), abs=1e-4)
        assert [c.action for c in mine.candidates] == [c.action for c in theirs.candidates]
        assert same([c.log_prob for c in mine.candidates], [c.log_prob for c in theirs.candidates])
        assert same([c.q or -1 for c in mine.candidates], [c.q or -1 for c in theirs.candidates])
