"""OpenAI's `/v1/chat/completions` and `/v1/models`, for agents that speak that protocol already.

What this server does not know in a request it ignores, as official clients send much of it;
errors have OpenAI's shape.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentprm.protocol import MAX_CANDIDATES, Message
from agentprm.service import ProblemError, request_body, shape_problems
from agentprm.serving import Serving
from services.policy.batching import Batcher
from services.policy.engine import CONTEXT_TOO_LONG, Draw, Engine, Prompt, Sample

ALIAS = "policy"
"""A model name that stands for whatever version serves."""

_Answer = list[tuple[Sample, list[str] | None]]
"""The samples of one prompt, each with the text of its tokens where that was asked for."""


class TextPart(BaseModel):
    """A part of a message's content; only text can be read."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message as OpenAI's clients send it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> Message:
        """The message as chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content=text)


class ChatRequest(BaseModel):
    """The options that are honoured; others are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    n: int = Field(default=1, ge=1, le=MAX_CANDIDATES)
    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=4096)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    logprobs: bool = False
    stream: bool = False

    def draw(self) -> Draw:
        """How to sample."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Draw(
            n=self.n,
            temperature=self.temperature,
            max_tokens=self.max_completion_tokens or self.max_tokens or 256,
            stop=tuple(text for text in stop if text),
        )


class Error(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer that is an error."""

    error: Error


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 503)
}


def add_routes(app: FastAPI, batcher: Batcher[Engine], serving: Serving[Engine]) -> None:
    """`POST /v1/chat/completions` and `GET /v1/models`."""

    for path in ("/v1/models", "/v1/chat/completions"):
        shape_problems(app, path, _problem)

    @app.get("/v1/models", responses=_ERRORS)
    async def _models() -> Response:
        names = [ALIAS] + ([serving.version] if serving.version else [])
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "agentprm"} for name in names
        ]
        return _json({"object": "list", "data": data})

    @app.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest), responses=_ERRORS)
    async def _complete(http: Request) -> Response:
        try:
            request = ChatRequest.model_validate_json(await http.body())
        except ValidationError as error:
            first = error.errors()[0]
            param = ".".join(str(part) for part in first["loc"]) or None
            return _error(400, f"{param or 'body'}: {first['msg']}", param=param)
        if request.stream:
            return _error(400, "streaming is not supported; send stream: false", param="stream")
        if request.model not in (ALIAS, serving.version):
            message = f"the model {request.model!r} is not served; GET /v1/models lists what is"
            return _error(404, message, param="model", code="model_not_found")
        seed = secrets.randbits(31) if request.seed is None else request.seed % 2**31
        prompt = Prompt(tuple(m.plain() for m in request.messages), (seed, 0))
        draw = request.draw()

        def work(engine: Engine, items: Sequence[Prompt]) -> list[_Answer]:
            texts = engine.token_texts if request.logprobs else None
            return [
                [(sample, texts(sample.ids) if texts else None) for sample in samples]
                for samples in engine.generate(items, draw)
            ]

        try:
            version, found = await batcher.submit(
                ("chat", draw, request.logprobs), work, [prompt], draw.n
            )
        except ProblemError as error:
            return _problem(error)
        return _json(_completion(version, found[0]))


def _completion(version: str, answer: _Answer) -> dict[str, Any]:
    completion_tokens = sum(len(sample.ids) for sample, _ in answer)
    prompt_tokens = answer[0][0].prompt_tokens
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": version,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": sample.text, "refusal": None},
                "finish_reason": "stop" if sample.finished else "length",
                "logprobs": None if tokens is None else _logprobs(sample, tokens),
            }
            for index, (sample, tokens) in enumerate(answer)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _logprobs(sample: Sample, tokens: Sequence[str]) -> dict[str, Any]:
    content = [
        {"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}
        for token, value in zip(tokens, sample.log_probs, strict=True)
    ]
    return {"content": content, "refusal": None}


def _problem(error: ProblemError) -> Response:
    """A problem of the native API in OpenAI's shape."""
    problem = error.problem
    code = "context_length_exceeded" if problem.title == CONTEXT_TOO_LONG else None
    status = 400 if problem.status == 422 else problem.status
    headers = (
        {} if error.retry_after is None else {"Retry-After": f"{max(1, round(error.retry_after))}"}
    )
    return _error(status, problem.detail or problem.title, code=code, headers=headers)


def _error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    kind = (
        "invalid_request_error"
        if status < 429
        else "rate_limit_error"
        if status == 429
        else "server_error"
    )
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _json({"error": error}, status, headers)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")
