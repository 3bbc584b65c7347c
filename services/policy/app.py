"""The policy service: `/v1/act`, the OpenAI routes, and hot swap of checkpoints."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI, Request, Response
from prometheus_client import Counter

from agentprm import __version__
from agentprm.client import AsyncPRMClient
from agentprm.models.serving import add_checkpoint_routes
from agentprm.prompts import load_prompt
from agentprm.protocol import ActRequest, ActResponse, ActResult, Health
from agentprm.service import create_app, json_response, problems, unless_left
from services.policy import chat
from services.policy.backend import open_backend
from services.policy.batching import Batcher
from services.policy.best_of_n import DEGRADED, PRMUnavailableError, choose_best, require_prm
from services.policy.decoding import Decoder, Query
from services.policy.engine import Engine
from services.policy.settings import PolicySettings

ACTION_TOKENS = Counter("agentprm_policy_action_tokens_total", "Tokens of the sampled actions")


def build_app(settings: PolicySettings) -> FastAPI:
    """The app; it loads its checkpoint when it starts.

    Raises:
        FileNotFoundError: `settings.prompt` is neither the name of a prompt nor a file.
        ValueError: that prompt does not render a reason, then a command, verbatim; or the keys in
            the environment are malformed.
    """
    template = load_prompt(settings.prompt)
    backend = open_backend(settings, template)
    serving = backend.serving
    decoder = Decoder(template)
    batcher = Batcher(serving, max_waiting=settings.queue, concurrency=backend.concurrency)
    prm = (
        AsyncPRMClient(
            settings.prm_url, deadline=settings.prm_deadline, unreachable=settings.prm_unreachable
        )
        if settings.prm_url
        else None
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with backend.running(), batcher.running():
            await serving.resume(settings.checkpoint)
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
                "engine": settings.engine,
                "refused": serving.refused,
                **backend.facts(),
                "prompt": settings.prompt,
                "template_hash": decoder.template.hash,
                "prm_url": settings.prm_url,
                "waiting_samples": batcher.waiting,
            },
        )

    app = create_app("policy", health, lifespan, serving.limits)
    add_checkpoint_routes(app, serving)
    chat.add_routes(app, batcher, serving, prm)

    @app.post("/v1/act", response_model=ActResponse, responses=problems(429))
    async def _act(request: ActRequest, http: Request) -> Response:
        if request.prm:
            require_prm(prm, allow_degraded=request.allow_degraded)
        seed = secrets.randbits(31) if request.seed is None else request.seed
        hints = request.hints or [""] * len(request.states)
        queries = [
            Query(state, (seed, k), hint)
            for k, (state, hint) in enumerate(zip(request.states, hints, strict=True))
        ]

        def work(engine: Engine, items: Sequence[Query]) -> list[ActResult]:
            return decoder.act(engine, items, request.n, request.sampling)

        kind = ("act", request.n, request.sampling)
        sampling = batcher.submit(kind, work, queries, request.n * len(queries))
        version, found = await unless_left(http, sampling)
        results = list(found)
        ACTION_TOKENS.inc(sum(c.tokens * c.count for r in results for c in r.candidates))
        prm_version, degraded = None, False
        if request.prm:
            try:
                prm_version, results = await choose_best(prm, request, results, seed)
            except PRMUnavailableError:
                if not request.allow_degraded:
                    raise
                degraded = True
                DEGRADED.inc()
        return json_response(
            ActResponse(
                results=results,
                policy_version=version,
                prm_version=prm_version,
                degraded=degraded,
                template_hash=decoder.template.hash,
            )
        )

    return app
