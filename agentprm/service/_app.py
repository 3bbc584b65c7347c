"""The app that every service starts from."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from agentprm.keys import Keys
from agentprm.protocol import Health
from agentprm.service._auth import Authenticate, granted
from agentprm.service._limits import Bound, Limits
from agentprm.service._observe import Observe
from agentprm.service._openapi import document
from agentprm.service._problems import add_handlers, json_response

SERVING = Gauge(
    "agentprm_serving_info", "1; what serves is in the labels", ["service", "version", "package"]
)


def create_app(
    name: str,
    health: Callable[[], Health],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """A FastAPI app with the shared behaviour. `health` is called for `GET /health`.

    Where the environment has `AGENTPRM_API_KEYS`, all but `/health` and the documentation needs one
    of them.
    """
    app = FastAPI(title=f"AgentPRM {name}", lifespan=lifespan, redoc_url=None)
    add_handlers(app, name)
    document(app)
    # The last one added is the first one met.
    app.add_middleware(Bound, service=name, limits=limits or Limits())
    app.add_middleware(Authenticate, keys=Keys.from_environment())
    app.add_middleware(Observe, service=name)

    @app.get("/health", response_model=Health)
    async def _health() -> Response:
        """200 also without a checkpoint: it can be told what to load. Details need a key.

        Nothing listens while a start loads what is to be served.
        """
        found = health().model_copy(update={"pid": os.getpid()})
        return json_response(found if granted() else found.model_copy(update={"details": {}}))

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def _metrics() -> Response:
        """For Prometheus."""
        found = health()
        SERVING.clear()
        SERVING.labels(name, found.version or "", found.package_version).set(1)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app
