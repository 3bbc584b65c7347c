"""Best-of-N against a PRM whose scores are known, over HTTP; and the batcher before the model."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import permutations
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi import FastAPI, Response
from pydantic import ValidationError

from agentprm.client import AsyncPRMClient
from agentprm.models.serving import Serving
from agentprm.protocol import (
    Action,
    ActRequest,
    ActResult,
    Candidate,
    Continuations,
    Message,
    ScoreRequest,
    ScoreResponse,
    State,
)
from agentprm.registry import Registry
from agentprm.service import ProblemError, create_app
from agentprm.validation import first_error, first_field
from services.policy.batching import Batcher
from services.policy.best_of_n import PRMUnavailableError, best, choose_best, ranking, score
from services.policy.chat_request import ChatRequest, best_of_named
from services.policy.engine.sampling import generator
from tests.fake_services import serving as served

STATES = [State(task="t", observation=str(k)) for k in range(2)]
Q = {"look": 0.2, "go to desk 1": 0.9, "inventory": 0.9}


def candidate(command: str, log_prob: float = -1.0, count: int = 1) -> Candidate:
    action = Action(command=command)
    return Candidate(text=command, action=action, log_prob=log_prob, tokens=1, count=count)


def result(*commands: str) -> ActResult:
    return ActResult(candidates=[candidate(command) for command in commands], chosen=0)


RESULTS = [result("look", "go to desk 1"), result("inventory", "look", "go to desk 1")]


def known_prm(status: int = 200, **change: Any) -> AbstractContextManager[str]:
    """Serves Q by command or answer, with `change` made to its answer; its URL."""
    app: FastAPI = create_app("prm", lambda: pytest.fail("nobody asks"))

    @app.post("/v1/score")
    async def _score(request: ScoreRequest) -> Response:
        answer = ScoreResponse(
            pairs=[],
            choices=[[Q[a.command] for a in choice.actions] for choice in request.choices],
            transcripts=[],
            continuations=[[Q[text] for text in each.answers] for each in request.continuations],
            prm_version="prm/0",
            template_hash="x",
        )
        body = b"NaN".join(orjson.dumps(answer.model_dump() | change).split(b'"NaN"'))
        return Response(body, status, media_type="application/json")

    return served(app)


async def choose(
    url: str, results: Sequence[ActResult] = RESULTS, **options: float
) -> tuple[str, list[ActResult]]:
    states = [STATES[k % 2] for k in range(len(results))]
    request = ActRequest.model_validate({"states": states, "prm": True, **options})
    async with AsyncPRMClient(url, deadline=1) as prm:
        return await choose_best(prm, request, results, seed=0)


def test_the_candidate_of_highest_q_is_chosen_in_each_state() -> None:
    with known_prm() as url:
        version, results = asyncio.run(choose(url))
    assert version == "prm/0"
    assert [r.best.action.command for r in results] == ["go to desk 1", "inventory"]
    assert [[c.q for c in r.candidates] for r in results] == [[0.2, 0.9], [0.9, 0.2, 0.9]]


def test_answers_to_a_conversation_are_scored_in_their_order() -> None:
    asked = Continuations(messages=[Message(role="user", content="x")], answers=[*Q])

    async def ask(url: str) -> tuple[str, list[list[float]]]:
        async with AsyncPRMClient(url, deadline=1) as prm:
            return await score(prm, ScoreRequest(continuations=[asked]))

    with known_prm() as url:
        assert asyncio.run(ask(url)) == ("prm/0", [[*Q.values()]])
    few = pytest.raises(PRMUnavailableError, match="did not score every candidate")
    with known_prm(continuations=[[0.2, 0.9]]) as url, few:
        asyncio.run(ask(url))


def test_a_request_says_how_its_candidates_are_weighed() -> None:
    many = ActResult(candidates=[candidate("look", count=15), candidate("inventory")], chosen=0)
    with known_prm() as url:
        for beta, chosen in ((0.0, 1), (0.5, 0)):
            _, (result,) = asyncio.run(choose(url, [many], beta=beta))
            assert result.chosen == chosen


def test_the_states_of_a_request_are_drawn_apart() -> None:
    with known_prm() as url:
        _, found = asyncio.run(choose(url, [result("look", "inventory")] * 16, q_temperature=9.0))
    assert {each.chosen for each in found} == {0, 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"choices": [[0.2, 0.9], [0.9, 0.2]]}, "did not score every candidate"),
        ({"choices": [[0.2, 0.9]]}, "did not score every candidate"),
        ({"choices": [[0.2, 0.9], [0.9, None, 0.9]]}, "did not answer"),
        ({"choices": [[0.2, 0.9], [0.9, "NaN", 0.9]]}, "did not answer"),
        ({"choices": [[0.2, 0.9], [0.9, 7.0, 0.9]]}, "did not answer"),
        ({"choices": "what?"}, "did not answer"),
        ({"status": 500}, "500"),
        ({"status": 404}, "404"),
    ],
)
def test_what_is_not_a_score_for_each_candidate_is_a_503_and_never_0(
    change: dict[str, Any], why: str
) -> None:
    with known_prm(**change) as url, pytest.raises(PRMUnavailableError, match=why) as error:
        asyncio.run(choose(url))
    assert error.value.problem.status == 503


@pytest.mark.parametrize("status", [413, 422])
def test_what_the_prm_refuses_is_the_requests_fault(status: int) -> None:
    with known_prm(status) as url, pytest.raises(ProblemError) as error:
        asyncio.run(choose(url))
    assert error.value.problem.status == status
    assert not isinstance(error.value, PRMUnavailableError)


def test_a_prm_that_refuses_connections_is_given_up_long_before_the_deadline() -> None:
    with known_prm() as url:
        pass

    async def ask() -> None:
        async with AsyncPRMClient(url, deadline=60, unreachable=0.3) as prm:
            await choose_best(prm, ActRequest(states=STATES, prm=True), RESULTS, seed=0)

    started = time.monotonic()
    with pytest.raises(PRMUnavailableError, match="did not answer"):
        asyncio.run(ask())
    assert time.monotonic() - started < 5


def test_ties_of_q_go_to_the_count_then_to_the_likelier_then_to_the_first() -> None:
    counts, log_probs = [1, 2, 2, 2], [-9.0, -3.0, -1.0, -1.0]
    assert rank([0.9, 0.5, 0.5, 0.5], counts, log_probs) == [0, 2, 2, 3, 3, 1, 1]
    assert rank([0.5, 0.5, 0.1, 0.1], counts, log_probs) == [1, 1, 0, 2, 2, 3, 3]
    assert rank([0.5, 0.5, 0.5, 0.5], counts, log_probs) == [2, 2, 3, 3, 1, 1, 0]


def rank(q: Sequence[float], counts: Sequence[int], log_probs: Sequence[float]) -> list[int]:
    return ranking(q, counts, log_probs, 0.0, (0, 0))


def test_a_temperature_over_q_draws_samples_and_counts_duplicates() -> None:
    """The chance of a candidate is count * exp(Q / temperature) over the sum of all.

    With Q of 0.2 and 0.6, counts of 3 and 1, and a temperature of 0.4 the weights are 3 e^0.5 and
    e^1.5: the first is chosen with a chance of 3 / (3 + e) = 0.5246. Without the counts it would
    be 1 / (1 + e) = 0.2689, and by the highest Q never.
    """
    both = ActResult(candidates=[candidate("a", count=3), candidate("b")], chosen=0)
    draws = 20_000
    first = sum(best(both, [0.2, 0.6], 0.4, (seed, 0)).chosen == 0 for seed in range(draws))
    expected = 3 / (3 + math.e)
    assert first / draws == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws))


def test_a_temperature_over_q_orders_as_draws_without_replacement() -> None:
    """P(i, j, k) is w_i / (w_i + w_j + w_k) times w_j / (w_j + w_k)."""
    weight = [1.0, 2.0, 4.0]
    q = [0.1 * math.log(w) for w in weight]
    draws = 20_000
    found = Counter(
        tuple(ranking(q, [1, 1, 1], [0.0] * 3, 0.1, (seed, 1))) for seed in range(draws)
    )
    for i, j, k in permutations(range(3)):
        expected = weight[i] / sum(weight) * weight[j] / (weight[j] + weight[k])
        assert found[i, j, k] / draws == pytest.approx(expected, abs=0.015)


def test_draws_by_q_follow_the_seed_and_sharpen_to_the_best() -> None:
    arguments = ([0.2, 0.6, 0.5], [3, 1, 2], [-1.0, -1.0, -1.0])
    orders = [ranking(*arguments, 1.0, (seed, 0)) for seed in range(20)]
    assert orders == [ranking(*arguments, 1.0, (seed, 0)) for seed in range(20)]
    assert len({tuple(order) for order in orders}) > 5
    for temperature in (0.0, 5e-324, 1e-9):
        assert ranking(*arguments, temperature, (0, 0)) == [1, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("purpose", [0, 1])
def test_draws_by_q_do_not_follow_what_tokens_and_commands_were_drawn_by(purpose: int) -> None:
    """From one stream the larger of two numbers would be the first of two equals every time."""
    keys = [(seed, 3) for seed in range(400)]
    alike = sum(
        ranking([0.5, 0.5], [1, 1], [-1.0, -1.0], 1.0, key)[0]
        == generator(key, purpose).random(2).argmax()
        for key in keys
    )
    assert alike == pytest.approx(200, abs=4 * 10)


def test_beta_weighs_the_share_of_the_samples() -> None:
    """Of 16 samples 15 are alike: one has to be log(15) beta better in Q.

    With beta = 0.1 that is 0.271: 0.8 against 0.5 is enough, and 0.75 is not.
    """
    many = ActResult(candidates=[candidate("a", count=15), candidate("b")], chosen=0)

    def chosen(q: float, beta: float) -> ActResult:
        return best(many, [0.5, q], 0.0, (0, 0), beta)

    assert chosen(0.8, 0.1).chosen == 1
    assert chosen(0.75, 0.1).chosen == 0
    assert chosen(0.51, 0.0).chosen == 1
    assert [c.q for c in chosen(0.75, 0.1).candidates] == [0.5, 0.75]  # Q itself is what is told


def test_beta_and_a_temperature_find_the_same_candidate_likeliest() -> None:
    q, counts, beta = [0.2, 0.32, 0.6], [12, 3, 1], 0.1
    both = ActResult(
        candidates=[candidate(name, count=n) for name, n in zip("abc", counts, strict=True)],
        chosen=0,
    )
    drawn = Counter(best(both, q, beta, (seed, 0)).chosen for seed in range(4000))
    assert drawn.most_common(1)[0][0] == best(both, q, 0.0, (0, 0), beta).chosen == 2


def test_options_of_the_prm_without_the_prm_are_refused() -> None:
    for option in ({"q_temperature": 0.5}, {"beta": 0.1}, {"allow_degraded": True}):
        with pytest.raises(ValidationError, match="no meaning without `prm`"):
            ActRequest.model_validate({"states": STATES, **option})
        ActRequest.model_validate({"states": STATES, "prm": True, **option})
    with pytest.raises(ValidationError, match="not both"):
        ActRequest(states=STATES, prm=True, q_temperature=0.5, beta=0.1)


def test_every_n_has_a_model_name() -> None:
    assert [best_of_named(f"best-of-{n}") for n in (1, 16, 64)] == [1, 16, 64]
    for name in ("best-of-0", "best-of-65", "best-of-016", "best-of-", "best-of-1 ", "policy"):
        assert best_of_named(name) is None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"model": "best-of-4", "best_of": 8}, "best_of"),
        ({"model": "best-of-4", "n": 5}, "n"),
        ({"model": "policy", "best_of": 2, "n": 3}, "n"),
        ({"model": "policy", "q_temperature": 0.5}, "q_temperature"),
        ({"model": "policy", "allow_degraded": True}, "allow_degraded"),
        ({"model": "policy", "beta": 0.1}, "beta"),
        ({"model": "best-of-4", "beta": 0.1, "q_temperature": 0.5}, "beta"),
        ({"model": "best-of-4", "best_of": 4, "n": 4, "q_temperature": 0.5}, None),
        ({"model": "policy", "n": 4}, None),
    ],
)
def test_contradictions_of_a_chat_request_name_the_field(
    options: dict[str, Any], param: str | None
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **options}
    found = ChatRequest.model_validate(body).contradiction()
    assert (found and found[0]) == param


@pytest.mark.parametrize("stop", [["x"] * 17, [None], [1], 1, {"text": "x"}, [["x"]]])
def test_stops_that_are_no_few_texts_are_told_in_words(stop: Any) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": "x"}]}
    for taken in ("x", ["x"] * 16, [], None):
        ChatRequest.model_validate(body | {"stop": taken})
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate(body | {"stop": stop})
    assert first_error(refused.value) == "stop: give a text, or a list of at most 16 texts"
    assert first_field(refused.value) == "stop"


def test_waiting_jobs_share_a_batch_but_not_each_others_faults(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
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
        async with batcher.running():
            return list(await asyncio.gather(*jobs, return_exceptions=True))

    *answers, unlucky, refused = asyncio.run(scenario())
    assert answers == [("policy/0", [2]), ("policy/0", [10]), ("policy/0", [4, 6])]
    assert isinstance(unlucky, ProblemError)
    assert unlucky.problem.status == 422
    assert isinstance(refused, ProblemError)
    assert refused.problem.status == 429
    assert batches == [[1, 2, 3, 13], [1], [2, 3], [13], [5]]
