"""Best-of-N against a PRM whose scores are known, over HTTP; and the batcher before the model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Response

from agentprm.client import AsyncPRMClient
from agentprm.protocol import Action, ActResult, Candidate, ScoreRequest, ScoreResponse, State
from agentprm.registry import Registry
from agentprm.service import ProblemError, create_app, json_response
from agentprm.serving import Serving
from services.policy.batching import Batcher, running
from services.policy.best_of_n import best, choose_best

STATES = [State(task="t", observation=str(k)) for k in range(2)]
Q = {"look": 0.2, "go to desk 1": 0.9, "inventory": 0.9}


def candidate(command: str, log_prob: float = -1.0, count: int = 1) -> Candidate:
    action = Action(command=command)
    return Candidate(action=action, log_prob=log_prob, tokens=1, count=count)


def result(*commands: str) -> ActResult:
    return ActResult(candidates=[candidate(command) for command in commands], chosen=0)


RESULTS = [result("look", "go to desk 1"), result("inventory", "look", "go to desk 1")]


@contextmanager
def known_prm(*, forgets: int = 0) -> Iterator[str]:
    """Serves Q by command, with the last `forgets` scores of each state left out."""
    app: FastAPI = create_app("prm", lambda: pytest.fail("nobody asks"))

    @app.post("/v1/score")
    async def _score(request: ScoreRequest) -> Response:
        q = [[Q[a.command] for a in choice.actions] for choice in request.choices]
        kept = [row[: len(row) - forgets] for row in q]
        answer = ScoreResponse(
            pairs=[], choices=kept, transcripts=[], prm_version="prm/0", template_hash="x"
        )
        return json_response(answer)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


async def choose(url: str) -> tuple[str, list[ActResult]]:
    async with AsyncPRMClient(url, deadline=5) as prm:
        return await choose_best(prm, STATES, RESULTS)


def test_the_candidate_of_highest_q_is_chosen_in_each_state() -> None:
    with known_prm() as url:
        version, results = asyncio.run(choose(url))
    assert version == "prm/0"
    assert [r.best.action.command for r in results] == ["go to desk 1", "inventory"]
    assert [[c.q for c in r.candidates] for r in results] == [[0.2, 0.9], [0.9, 0.2, 0.9]]


def test_a_missing_score_is_an_error_and_never_0() -> None:
    with known_prm(forgets=1) as url, pytest.raises(ProblemError, match="every candidate") as error:
        asyncio.run(choose(url))
    assert error.value.problem.status == 503


def test_ties_of_q_go_to_the_count_then_to_the_likelier_then_to_the_first() -> None:
    tied = ActResult(
        candidates=[
            candidate("a", -9, 1),
            candidate("b", -3, 2),
            candidate("c", -1, 2),
            candidate("d", -1, 2),
        ],
        chosen=0,
    )
    assert best(tied, [0.9, 0.5, 0.5, 0.5]).chosen == 0
    assert best(tied, [0.5, 0.5, 0.1, 0.1]).chosen == 1
    assert best(tied, [0.5, 0.5, 0.5, 0.5]).chosen == 2


def test_waiting_jobs_share_a_batch_but_not_each_others_faults(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    registry = Registry(tmp_path / "checkpoints")
    registry.adopt(tmp_path / "model", "policy/0")
    batches: list[list[int]] = []

    def double(weights: int, items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        if 13 in items:
            raise ProblemError(422, "Unlucky")
        return [weights * item for item in items]

    async def scenario() -> list[object]:
        serving = Serving("policy", registry, lambda _: 2, lambda *_: None)
        await serving.load("policy/0")
        batcher = Batcher(serving, max_waiting=10)
        jobs = [
            asyncio.create_task(batcher.submit(kind, double, items, len(items)))
            for kind, items in [("a", [1]), ("b", [5]), ("a", [2, 3]), ("a", [13]), ("b", [9] * 9)]
        ]
        given_up = asyncio.create_task(batcher.submit("a", double, [4], 1))
        await asyncio.sleep(0)
        given_up.cancel()
        async with running(batcher):
            return list(await asyncio.gather(*jobs, return_exceptions=True))

    *answers, unlucky, refused = asyncio.run(scenario())
    assert answers == [("policy/0", [2]), ("policy/0", [10]), ("policy/0", [4, 6])]
    assert isinstance(unlucky, ProblemError)
    assert unlucky.problem.status == 422
    assert isinstance(refused, ProblemError)
    assert refused.problem.status == 429
    assert batches == [[1, 2, 3, 13], [1], [2, 3], [13], [5]]
