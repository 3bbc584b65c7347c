"""The PRM over HTTP: `POST /v1/score` and its facades, `GET /v1/model`, loading, `/health`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Response
from pydantic import Field

import agentprm
from agentprm.prompts import load_prompt
from agentprm.protocol import Health, ModelCard, ScoreRequest, ScoreResponse
from agentprm.registry import Registry
from agentprm.service import create_app, json_response, problems
from agentprm.serving import Serving, add_checkpoint_routes
from agentprm.settings import ModelSettings
from services.prm.batching import Batcher
from services.prm.ensemble import Ensemble, load_ensemble
from services.prm.facades import add_facades
from services.prm.scorer import Scorer


class Settings(ModelSettings):
    """Serve Q(s, a)."""

    port: int = Field(default=8003, description="port to listen on")
    cache_gib: float = Field(
        default=1.0, ge=0, description="memory for what is kept between requests, in GiB"
    )


def build(settings: Settings) -> FastAPI:
    """The app. At start it serves `settings.checkpoint`, or what it served last, if anything."""
    prompt = load_prompt(settings.prompt)
    registry = Registry(settings.registry)

    def build_scorer(path: Path) -> Scorer:
        return Scorer(
            path,
            prompt,
            device=settings.device,
            dtype=settings.dtype,
            cache_bytes=int(settings.cache_gib * 2**30),
        )

    def load(path: Path) -> Ensemble:
        return load_ensemble(registry, path, prompt, build_scorer)

    serving = Serving("prm", registry, load, Ensemble.check)
    batcher = Batcher()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await serving.resume(settings.checkpoint)
        async with batcher.running():
            yield

    def health() -> Health:
        rows, tokens = batcher.waiting
        details: dict[str, str | int | float | bool | None] = {
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

    app = create_app("prm", health, lifespan)
    add_checkpoint_routes(app, serving)

    async def score(request: ScoreRequest) -> ScoreResponse:
        served = serving.current()
        return await served.weights.score(
            served.version, lambda member: batcher.score(member, request)
        )

    @app.post("/v1/score", response_model=ScoreResponse, responses=problems(429, 500))
    async def _score(request: ScoreRequest) -> Response:
        return json_response(await score(request))

    @app.get("/v1/model", response_model=ModelCard)
    async def _model() -> Response:
        served = serving.current()
        return json_response(served.weights.card(served.version))

    add_facades(app, score)
    return app
