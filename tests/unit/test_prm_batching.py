import asyncio
import gc
import math
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentprm.models.serving import Served
from agentprm.prompts import load_prompt
from agentprm.protocol import ScoreRequest, ScoreResponse
from agentprm.service import ProblemError
from services.prm import batching
from services.prm.batching import Batcher
from services.prm.packing import Row
from services.prm.planning import Plan
from services.prm.scorer import BaseScorer, Scorer
from tests.scorers import episode, tiny_scorer


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Served[Scorer]]:
    root = tmp_path_factory.mktemp("scorers")
    served = []
    for k in range(2):
        tiny_scorer(root / str(k), seed=k)
        served.append(Served(f"prm/{k}", Scorer(root / str(k), load_prompt("chat"), device="cpu")))
    return served


def within(batcher: Batcher, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), batcher.running():
            await scenario()

    asyncio.run(main())


@contextmanager
def held(batcher: Batcher) -> Iterator[None]:
    """Nothing is computed inside this block."""
    gate = threading.Event()
    batcher._computing.submit(gate.wait, 30)
    try:
        yield
    finally:
        gate.set()


def request(turns: int, seed: int = 0, count: int = 1) -> ScoreRequest:
    return ScoreRequest(transcripts=[episode(turns, seed + k) for k in range(count)])


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were computed together, pass by pass."""
    sizes: list[int] = []
    compute = batching._compute

    def watched(taken: Sequence[batching._Waiting]) -> list[list[float] | Exception]:
        sizes.append(len(taken))
        return compute(taken)

    monkeypatch.setattr(batching, "_compute", watched)
    return sizes


def test_requests_that_wait_are_computed_together(
    versions: list[Served[Scorer]], sizes: list[int]
) -> None:
    batcher = Batcher()

    async def scenario() -> None:
        asked = [request(2, seed) for seed in range(12)]
        answers = await asyncio.gather(*(batcher.score(versions[0], r) for r in asked))
        for answer, one in zip(answers, asked, strict=True):
            alone = await batcher.score(versions[0], one)
            assert answer.transcripts[0] == pytest.approx(alone.transcripts[0], abs=1e-5)

    within(batcher, scenario)
    assert sizes[-12:] == [1] * 12
    assert sum(sizes[:-12]) == 12
    assert len(sizes[:-12]) < 12


def test_no_answer_mixes_versions(versions: list[Served[Scorer]]) -> None:
    batcher = Batcher()
    asked = [request(3, seed, count=4) for seed in range(8)]

    async def scenario() -> None:
        expected = {
            (served.version, k): (await batcher.score(served, r)).transcripts
            for served in versions
            for k, r in enumerate(asked)
        }
        answers = await asyncio.gather(
            *(batcher.score(versions[k % 2], asked[k % 8]) for k in range(32))
        )
        for k, answer in enumerate(answers):
            assert answer.prm_version == f"prm/{k % 2}"
            for mine, right in zip(
                answer.transcripts, expected[answer.prm_version, k % 8], strict=True
            ):
                assert mine == pytest.approx(right, abs=1e-5)
            other = expected[versions[1 - k % 2].version, k % 8]
            assert answer.transcripts[0] != pytest.approx(other[0], abs=1e-3)

    within(batcher, scenario)


def test_a_short_request_overtakes_a_large_one(versions: list[Served[Scorer]]) -> None:
    batcher = Batcher()
    finished: list[str] = []

    async def ask(name: str, what: ScoreRequest) -> None:
        await batcher.score(versions[0], what)
        finished.append(name)

    async def scenario() -> None:
        with held(batcher):
            large = asyncio.create_task(ask("large", request(20, count=40)))
            while batcher._pushed < 40:
                await asyncio.sleep(0.001)
            short = [asyncio.create_task(ask("short", request(1, seed))) for seed in range(5)]
            while batcher._pushed < 45:
                await asyncio.sleep(0.001)
        await asyncio.gather(large, *short)

    within(batcher, scenario)
    assert finished == ["short"] * 5 + ["large"]


def waiting(batcher: Batcher, served: Served[BaseScorer], rows: int) -> batching._Job:
    """Have so many rows of 100 tokens wait, of one request."""
    plan = Plan(rows=[Row([1] * 100, [99], 100) for _ in range(rows)])
    done = asyncio.get_running_loop().create_future()
    job = batching._Job(served, plan, [100] * rows, done, [[] for _ in range(rows)], rows)
    batcher._push(job)
    return job


def test_a_large_request_and_short_ones_that_keep_coming_take_turns(
    versions: list[Served[Scorer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions[0].weights, "forward_tokens", 100)

    async def main() -> None:
        batcher = Batcher()
        large = waiting(batcher, versions[0], 5)
        taken = []
        for _ in range(10):
            waiting(batcher, versions[0], 1)
            taken += batcher._take()
        assert [each.job is large for each in taken] == [True, False] * 5

    asyncio.run(main())


def test_a_pass_takes_no_more_than_its_tokens(
    versions: list[Served[Scorer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions[0].weights, "forward_tokens", 250)

    async def main() -> None:
        batcher = Batcher()
        waiting(batcher, versions[0], 5)
        assert [len(batcher._take()) for _ in range(4)] == [2, 2, 1, 0]

    asyncio.run(main())


def test_what_was_given_up_is_not_computed(
    versions: list[Served[Scorer]], sizes: list[int]
) -> None:
    batcher = Batcher()

    async def scenario() -> None:
        with held(batcher):
            first = asyncio.create_task(batcher.score(versions[0], request(2, 1)))
            while batcher._pushed == 0 or batcher.waiting != (0, 0):
                await asyncio.sleep(0.001)
            given_up = asyncio.create_task(batcher.score(versions[0], request(2, 2)))
            while batcher.waiting == (0, 0):
                await asyncio.sleep(0.001)
            given_up.cancel()
            await asyncio.wait([given_up])
        await first
        await batcher.score(versions[0], request(2, 3))

    within(batcher, scenario)
    assert sizes == [1, 1]


def test_a_request_that_takes_too_long_is_a_503_and_makes_room(
    versions: list[Served[Scorer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(max_requests=1)

    async def scenario() -> None:
        with held(batcher), monkeypatch.context() as patch:
            patch.setattr(batching, "MAX_WAIT", 0.2)
            with pytest.raises(ProblemError, match="no answer") as caught:
                await batcher.score(versions[0], request(1))
        assert (caught.value.problem.status, caught.value.retry_after) == (503, 5)
        await batcher.score(versions[0], request(1))

    within(batcher, scenario)


def test_weights_are_gone_when_their_last_answer_is(tmp_path: Path) -> None:
    """No more is asked, so that nothing comes after them; and nothing looks for cycles."""
    tiny_scorer(tmp_path, seed=0)
    batcher = Batcher()

    async def scenario() -> None:
        served = Served("prm/0", Scorer(tmp_path, load_prompt("chat"), device="cpu"))
        gone = weakref.ref(served)
        await batcher.score(served, request(2))
        del served
        for _ in range(100):
            await asyncio.sleep(0.01)
            if gone() is None:
                break
        assert gone() is None

    gc.collect()
    gc.disable()
    try:
        within(batcher, scenario)
    finally:
        gc.enable()


def test_a_request_given_up_is_held_until_none_of_its_rows_can_be_computed(
    versions: list[Served[Scorer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Whole:
        """An ensemble, as a swap sees it."""

    batcher = Batcher()

    async def scenario() -> None:
        whole = Whole()
        gone = weakref.ref(whole)
        with held(batcher), monkeypatch.context() as patch:
            patch.setattr(batching, "MAX_WAIT", 0.2)
            await asyncio.gather(
                *(batcher.score(versions[0], request(1, k), whole) for k in range(3)),
                return_exceptions=True,
            )
            del whole
            gc.collect()
            assert gone() is not None
        await batcher.score(versions[0], request(1))
        gc.collect()
        assert gone() is None

    within(batcher, scenario)


def test_a_row_that_fails_fails_its_request_alone(versions: list[Served[Scorer]]) -> None:
    class Planned(Scorer):
        """A scorer whose plan of an eight-turn episode holds a token that does not exist."""

        def plan(self, asked: ScoreRequest) -> Plan:
            plan = super().plan(asked)
            if len(asked.transcripts[0].steps) == 8:
                plan.rows[0] = Row([10**6], [0], 1)
            return plan

    scorer = Planned.__new__(Planned)
    scorer.__dict__.update(versions[0].weights.__dict__)
    served: Served[Scorer] = replace(versions[0], weights=scorer)
    batcher = Batcher()

    async def scenario() -> None:
        asked = [batcher.score(served, request(turns)) for turns in (1, 8, 2)]
        first, bad, second = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(bad, IndexError)
        assert isinstance(first, ScoreResponse)
        assert isinstance(second, ScoreResponse)

    within(batcher, scenario)


def test_a_score_that_is_not_a_number_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where others of its row are numbers."""
    tiny_scorer(tmp_path, seed=0)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    with torch.no_grad():
        scorer.model.head.weight.fill_(float("nan"))
    batcher = Batcher()

    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(ProblemError, match="not a number") as caught:
                await batcher.score(Served("prm/0", scorer), request(2))
            assert caught.value.problem.status == 500
            monkeypatch.setattr(scorer, "score", lambda rows: [[0.5, math.nan] for _ in rows])

    within(batcher, scenario)


def test_what_waits_is_bounded(versions: list[Served[Scorer]]) -> None:
    async def refused(batcher: Batcher, asked: list[ScoreRequest], count: int) -> set[int]:
        """The statuses of `count` requests that are refused while nothing is computed."""
        with held(batcher):
            tasks = [asyncio.create_task(batcher.score(versions[0], one)) for one in asked]
            while sum(task.done() for task in tasks) < count:
                await asyncio.sleep(0.001)
            problems = [task.exception() for task in tasks if task.done()]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, ScoreResponse) for answer in answers) == len(asked) - count
        return {p.problem.status for p in problems if isinstance(p, ProblemError)}

    few, small = Batcher(max_requests=2), Batcher(max_waiting=4500)

    async def many_requests() -> None:
        assert await refused(few, [request(1)] * 5, 3) == {429}
        assert await refused(few, [request(1)] * 2, 0) == set()

    async def many_tokens() -> None:
        assert await refused(small, [request(20, count=9)], 1) == {413}
        # Of 1,900 tokens each, two find room and two do not.
        assert await refused(small, [request(20, count=3)] * 4, 2) == {429}
        assert small.waiting == (0, 0)

    within(few, many_requests)
    within(small, many_tokens)
