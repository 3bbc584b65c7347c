"""OpenAI's `/v1/chat/completions` and `/v1/models`, for agents that speak that protocol already.

What this server does not know in a request it ignores, as official clients send much of it;
errors have OpenAI's shape. With Best-of-N a completion and its choices have a field `prm` more.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from agentprm.client import AsyncPRMClient
from agentprm.models.serving import Serving
from agentprm.protocol import ChatMessage, Continuations, ScoreRequest
from agentprm.service import request_body, shape_problems, unless_left
from agentprm.validation import first_error, first_field
from services.policy.batching import Batcher
from services.policy.best_of_n import (
    DEGRADED,
    PRMUnavailableError,
    ranking,
    regularised,
    require_prm,
    score,
)
from services.policy.chat_errors import (
    ERRORS,
    NotServedError,
    error_response,
    problem_response,
    stray_response,
)
from services.policy.chat_request import ChatRequest, best_of_named
from services.policy.chat_stream import stream_response
from services.policy.engine import Draw, Engine, Prompt, Sample

ALIAS = "policy"
"""A model name that stands for whatever version serves."""
LONG = 50_000
"""Characters of a conversation whose encoding takes longer than a thread more: a tenth of a second
or so, in which nobody else should wait for the model."""
LISTED = (1, 2, 4, 8, 16, 32, 64)
"""N of the models `best-of-N` that are listed; every N up to the last is served."""


@dataclass(frozen=True)
class _Drawn:
    """A sample, with the text of the tokens of its text where that was asked for."""

    sample: Sample
    tokens: list[str] | None


@dataclass(frozen=True)
class _Candidate:
    """A distinct answer, as a completion shows it; drawn more than once, it is the first, of those
    that the policy ended itself if there are such.
    """

    text: str
    q: float
    count: int
    log_prob: float
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class _Judged:
    """All samples in the order of the PRM, each with the index of its candidate; those that were
    cut off come last, since the PRM reads them as if they were whole.
    """

    version: str
    candidates: list[_Candidate]
    ranked: list[tuple[_Drawn, int]]


def add_routes(
    app: FastAPI,
    batcher: Batcher[Engine],
    serving: Serving[Engine],
    prm: AsyncPRMClient | None,
) -> None:
    """`POST /v1/chat/completions` and `GET /v1/models`."""

    for path in ("/v1/models", "/v1/models/", "/v1/chat/completions"):
        shape_problems(app, path, problem_response)
    shape_problems(app, "", stray_response)

    @app.get("/v1/models", responses=ERRORS)
    async def _models() -> Response:
        names = [ALIAS] + ([serving.version] if serving.version else [])
        names += [f"best-of-{n}" for n in LISTED] if prm else []
        return _json({"object": "list", "data": [_model(name) for name in names]})

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def _one_model(name: str) -> Response:
        _require(name, serving.version)
        return _json(_model(name))

    @app.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest), responses=ERRORS)
    async def _complete(http: Request) -> Response:
        try:
            request = ChatRequest.model_validate_json(await http.body())
        except ValidationError as error:
            return error_response(400, first_error(error), param=first_field(error) or None)
        _require(request.model, serving.version)
        wrong = request.contradiction()
        if wrong is not None:
            return error_response(400, wrong[1], param=wrong[0])
        completion = await unless_left(http, _answer(request))
        if request.stream:
            usage = bool(request.stream_options.get("include_usage"))
            return stream_response(completion, usage=usage)
        return _json(completion)

    async def _answer(request: ChatRequest) -> dict[str, Any]:
        if request.candidates is not None:
            require_prm(prm, allow_degraded=request.allow_degraded)
        seed = secrets.randbits(31) if request.seed is None else request.seed % 2**31
        prompt = Prompt(tuple(m.plain() for m in request.messages), (seed, 0))
        version, drawn = await _sample(prompt, request.draw(), logprobs=request.logprobs)
        _require(request.model, version)  # as it waited, another may have come to serve
        if request.candidates is None:
            return _completion(version, drawn, [_choice(*each) for each in enumerate(drawn)])
        try:
            judged = await _judge(prm, prompt, drawn, request.q_temperature, request.beta)
        except PRMUnavailableError:
            if not request.allow_degraded:
                raise
            DEGRADED.inc()
            choices = [_choice(*each) | {"prm": None} for each in enumerate(drawn[: request.n])]
            return _completion(version, drawn, choices) | {"degraded": True, "prm": None}
        choices = [
            _choice(index, each) | {"prm": _scored(judged, candidate)}
            for index, (each, candidate) in enumerate(judged.ranked[: request.n])
        ]
        found = {"version": judged.version, "candidates": judged.candidates}
        return _completion(version, drawn, choices) | {"degraded": False, "prm": found}

    async def _sample(prompt: Prompt, draw: Draw, *, logprobs: bool) -> tuple[str, list[_Drawn]]:
        def work(engine: Engine, items: Sequence[Prompt]) -> list[list[_Drawn]]:
            texts = engine.token_texts if logprobs else None
            return [
                [_Drawn(sample, texts(sample) if texts else None) for sample in samples]
                for samples in engine.generate(items, draw)
            ]

        if sum(len(message.content) for message in prompt.messages) > LONG:
            await batcher.ahead(lambda engine: engine.encode(prompt.messages))
        version, found = await batcher.submit(("chat", draw, logprobs), work, [prompt], draw.n)
        return version, found[0]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentprm"}


def _require(model: str, version: str | None) -> None:
    """Raise a 404 unless `model` names what serves."""
    if model not in (ALIAS, version) and not best_of_named(model):
        detail = f"the model {model!r} is not served; GET /v1/models lists what is"
        raise NotServedError(404, "Model not served", detail)


async def _judge(
    prm: AsyncPRMClient | None,
    prompt: Prompt,
    drawn: Sequence[_Drawn],
    temperature: float,
    beta: float,
) -> _Judged:
    """Equal texts are one candidate; all are scored in one call.

    Raises:
        ProblemError: as `score`.
    """
    by_text: dict[str, list[_Drawn]] = {}
    for each in drawn:
        by_text.setdefault(each.sample.text, []).append(each)
    for equal in by_text.values():
        equal.sort(key=lambda each: not each.sample.finished)
    asked = Continuations(
        messages=[ChatMessage(role=m.role, content=m.content) for m in prompt.messages],
        answers=list(by_text),
    )
    version, (q,) = await score(prm, ScoreRequest(continuations=[asked]))
    candidates = [
        _Candidate(
            text=text,
            q=value,
            count=len(equal),
            log_prob=sum(equal[0].sample.log_probs),
            tokens=len(equal[0].sample.ids),
            finish_reason=_finish_reason(equal[0].sample),
        )
        for (text, equal), value in zip(by_text.items(), q, strict=True)
    ]
    counts = [candidate.count for candidate in candidates]
    log_probs = [candidate.log_prob for candidate in candidates]
    order = ranking(regularised(q, counts, beta), counts, log_probs, temperature, prompt.key)
    equals = [iter(equal) for equal in by_text.values()]
    ranked = [(next(equals[k]), k) for k in order]
    ranked.sort(key=lambda each: not each[0].sample.finished)
    return _Judged(version, candidates, ranked)


def _scored(judged: _Judged, candidate: int) -> dict[str, Any]:
    q = judged.candidates[candidate].q
    return {"q": q, "version": judged.version, "candidate": candidate}


def _choice(index: int, drawn: _Drawn) -> dict[str, Any]:
    sample = drawn.sample
    return {
        "index": index,
        "message": {"role": "assistant", "content": sample.text, "refusal": None},
        "finish_reason": _finish_reason(sample),
        "logprobs": None if drawn.tokens is None else _logprobs(sample, drawn.tokens),
    }


def _finish_reason(sample: Sample) -> str:
    return "stop" if sample.finished else "length"


def _completion(
    version: str, drawn: Sequence[_Drawn], choices: list[dict[str, Any]]
) -> dict[str, Any]:
    """`usage` counts every sample that was drawn, returned or not."""
    completion_tokens = sum(len(each.sample.ids) for each in drawn)
    prompt_tokens = drawn[0].sample.prompt_tokens
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": version,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _logprobs(sample: Sample, tokens: Sequence[str]) -> dict[str, Any]:
    """As OpenAI's, of the tokens of the text alone: not of what ended it."""
    content = [
        {"token": token, "logprob": value, "bytes": _bytes(token), "top_logprobs": []}
        for token, value in zip(tokens, sample.log_probs, strict=False)
    ]
    return {"content": content, "refusal": None}


def _bytes(token: str) -> list[int] | None:
    """None where the token is a part of a character: its text does not tell which."""
    return None if "\ufffd" in token else list(token.encode())


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
