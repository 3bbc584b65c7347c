"""The PRM over HTTP: `POST /v1/score` and its facades, `GET /v1/model`, loading, `/health`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response

import agentprm
from agentprm.models.serving import add_checkpoint_routes
from agentprm.prompts import load_prompt
from agentprm.protocol import Health, ModelCard, ScoreRequest, ScoreResponse
from agentprm.service import create_app, json_response, problems
from services.prm.backend import open_backend
from services.prm.batching import Batcher
from services.prm.facades import add_facades
from services.prm.settings import PRMServiceSettings


def build_app(settings: PRMServiceSettings) -> FastAPI:
    """The app. At start it serves `settings.checkpoint`, or what it served last, if anything.

    Raises:
        FileNotFoundError: `settings.prompt` is neither the name of a prompt nor a file.
        ValueError: the keys in the environment are malformed.
    """
    prompt = load_prompt(settings.prompt)
    backend = open_backend(settings, prompt)
    serving = backend.serving
    batcher = Batcher(concurrency=backend.concurrency)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with backend.running(), batcher.running():
            await serving.resume(settings.checkpoint)
            yield

    def health() -> Health:
        rows, tokens = batcher.waiting
        details: dict[str, str | int | float | bool | None] = {
            "engine": settings.engine,
            "refused": serving.refused,
            **backend.facts(),
            "template_hash": prompt.hash,
            "append_only": prompt.append_only,
            "waiting_rows": rows,
            "waiting_tokens": tokens,
        }
        if serving.version is not None:
            members = serving.current().weights.members
            scorer = members[0].weights
            details |= {
                "members": len(members),
                "device": str(scorer.device),
                "dtype": scorer.dtype,
                "parameters": sum(member.weights.parameters for member in members),
                "max_tokens": scorer.max_tokens,
            }
        return Health(
            service="prm",
            status="loading" if serving.version is None else "healthy",
            package_version=agentprm.__version__,
            version=serving.version,
            details=details,
        )

    app = create_app("prm", health, lifespan, serving.limits)
    add_checkpoint_routes(app, serving)

    async def score(request: ScoreRequest) -> ScoreResponse:
        async with serving.using() as served:
            answer: ScoreResponse = await served.weights.score(
                served.version, lambda member: batcher.score(member, request, served)
            )
            return answer

    @app.post("/v1/score", response_model=ScoreResponse, responses=problems(429, 500))
    async def _score(request: ScoreRequest) -> Response:
        return json_response(await score(request))

    @app.get("/v1/model", response_model=ModelCard)
    async def _model() -> Response:
        served = serving.current()
        return json_response(served.weights.card(served.version))

    add_facades(app, score)
    return app
