"""The PRM over HTTP: `POST /v1/score`, `POST /v1/checkpoints/load`, `/health`, `/metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Response
from pydantic import Field

import agentprm
from agentprm.prompts import load_prompt
from agentprm.protocol import Health, ScoreRequest, ScoreResponse
from agentprm.registry import Registry
from agentprm.service import create_app, json_response
from agentprm.serving import Serving, add_checkpoint_routes
from agentprm.settings import ModelSettings
from services.prm.batching import Batcher
from services.prm.canary import check
from services.prm.scorer import Scorer


class Settings(ModelSettings):
    """Serve Q(s, a)."""

    port: int = Field(default=8003, description="port to listen on")


def build(settings: Settings) -> FastAPI:
    """The app. At start it serves `settings.checkpoint`, or what it served last, if anything."""
    prompt = load_prompt(settings.prompt)

    def load(path: Path) -> Scorer:
        return Scorer(path, prompt, device=settings.device, dtype=settings.dtype)

    serving = Serving(
        "prm", Registry(settings.registry), load, check, timeout=settings.load_timeout
    )
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
        return json_response(await batcher.score(serving.current(), request))

    return app
