"""What the policy and the PRM service have in common about what computes below them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from agentprm.models.in_place import InPlaceServing
from agentprm.models.replicas import Replicas
from agentprm.models.serving import Serving
from agentprm.settings import EngineSettings

Facts = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Backend:
    """What an app needs of the engine below it.

    `concurrency` is how many batches are computed side by side; `running` is entered while the app
    runs; `facts` are for `/health`.
    """

    serving: Serving[Any]
    concurrency: int = 1
    running: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    facts: Callable[[], Facts] = dict


def open_replicas(settings: EngineSettings) -> Replicas:
    """The SGLang servers of the settings; none is asked yet. Their key is AGENTPRM_SGLANG_KEY."""
    key = os.environ.get("AGENTPRM_SGLANG_KEY")
    return Replicas(
        settings.engine_url,
        key=key,
        timeout=settings.engine_timeout,
        load_timeout=settings.load_timeout,
    )


def on_replicas(serving: InPlaceServing[Any], settings: EngineSettings) -> Backend:
    """A backend of SGLang servers.

    A server merges the requests it has itself, so batches need not wait for one another here.
    """

    def facts() -> Facts:
        tags = serving.replicas.tags()
        ready = sum(tag is not None for tag in tags.values())
        versions = {f"replica {url}": tag for url, tag in tags.items()}
        return {"replicas": len(tags), "replicas_ready": ready, **versions}

    return Backend(serving, settings.engine_batches, serving.running, facts)
