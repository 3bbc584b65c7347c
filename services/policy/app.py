"""The policy service: `/v1/act`, the OpenAI routes, and hot swap of checkpoints."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fastapi import FastAPI, Response
from prometheus_client import Counter

from agentprm import __version__
from agentprm.client import AsyncPRMClient
from agentprm.prompts import load_prompt
from agentprm.protocol import ActRequest, ActResponse, ActResult, Health
from agentprm.registry import Registry
from agentprm.service import create_app, json_response
from agentprm.serving import Serving, add_checkpoint_routes
from services.policy import chat
from services.policy.batching import Batcher, running
from services.policy.best_of_n import choose_best
from services.policy.canary import check
from services.policy.decoding import Decoder, Query
from services.policy.engine import Engine
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.settings import PolicySettings

ACTION_TOKENS = Counter("agentprm_policy_action_tokens_total", "Tokens of the sampled actions")


def build_app(settings: PolicySettings) -> FastAPI:
    """The app; it loads its checkpoint when it starts."""

    def build(path: Path) -> Engine:
        return EmbeddedEngine.load(
            path,
            device=settings.device,
            dtype=settings.dtype,
            cache_tokens=settings.cache_tokens,
        )

    decoder = Decoder(load_prompt(settings.prompt))
    serving = Serving(
        "policy",
        Registry(settings.registry),
        build,
        lambda engine, path: check(engine, path, decoder.template),
        timeout=settings.load_timeout,
    )
    batcher = Batcher(serving, max_waiting=settings.queue)
    prm = (
        AsyncPRMClient(settings.prm_url, deadline=settings.prm_deadline)
        if settings.prm_url
        else None
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await serving.resume(settings.checkpoint)
        async with running(batcher):
            yield
        if prm is not None:
            await prm.close()

    def health() -> Health:
        return Health(
            service="policy",
            status="loading" if serving.version is None else "healthy",
            package_version=__version__,
            version=serving.version,
            details={
                "engine": "embedded",
                "prompt": settings.prompt,
                "template_hash": decoder.template.hash,
                "prm_url": settings.prm_url,
                "waiting_samples": batcher.waiting,
            },
        )

    app = create_app("policy", health, lifespan)
    add_checkpoint_routes(app, serving)
    chat.add_routes(app, batcher, serving)

    @app.post("/v1/act", response_model=ActResponse)
    async def _act(request: ActRequest) -> Response:
        seed = secrets.randbits(31) if request.seed is None else request.seed
        queries = [Query(state, (seed, k)) for k, state in enumerate(request.states)]

        def work(engine: Engine, items: Sequence[Query]) -> list[ActResult]:
            return decoder.act(engine, items, request.n, request.sampling)

        kind = ("act", request.n, request.sampling)
        version, found = await batcher.submit(kind, work, queries, request.n * len(queries))
        results = list(found)
        ACTION_TOKENS.inc(sum(c.tokens * c.count for r in results for c in r.candidates))
        prm_version = None
        if request.prm:
            prm_version, results = await choose_best(prm, request.states, results)
        return json_response(
            ActResponse(
                results=results,
                policy_version=version,
                prm_version=prm_version,
                template_hash=decoder.template.hash,
            )
        )

    return app
