"""The PRM over HTTP: `POST /v1/score`, `POST /v1/checkpoints/load`, `/health`, `/metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response

import agentprm
from agentprm.prompts import load_prompt
from agentprm.protocol import Health, ScoreRequest, ScoreResponse
from agentprm.service import create_app, json_response
from agentprm.serving import add_checkpoint_routes
from services.prm.batching import Batcher
from services.prm.engines import open_engine
from services.prm.settings import Settings


def build(settings: Settings) -> FastAPI:
    """The app. At start it serves `settings.checkpoint`, or what it served last, if anything."""
    prompt = load_prompt(settings.prompt)
    engine = open_engine(settings, prompt)
    serving = engine.serving
    batcher = Batcher(concurrency=engine.concurrency)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with engine.running(), batcher.running():
            await serving.resume(settings.checkpoint)
            yield

    def health() -> Health:
        rows, tokens = batcher.waiting
        details: dict[str, str | int | float | bool | None] = {
            "engine": settings.engine,
            **engine.facts(),
            "template_hash": prompt.hash,
            "append_only": prompt.append_only,
            "waiting_rows": rows,
            "waiting_tokens": tokens,
        }
        if serving.version is not None:
            scorer = serving.current().weights
            details |= {
                "device": str(scorer.device),
                "dtype": scorer.dtype,
                "parameters": scorer.parameters,
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

    @app.post("/v1/score", response_model=ScoreResponse)
    async def _score(request: ScoreRequest) -> Response:
        async with serving.using() as served:
            return json_response(await batcher.score(served, request))

    return app
