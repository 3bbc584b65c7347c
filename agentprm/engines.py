"""What the policy and the PRM service have in common about the engine below them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from agentprm.in_place import InPlaceServing
from agentprm.replicas import Replicas
from agentprm.serving import Serving
from agentprm.settings import EngineSettings

Facts = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Engine:
    """What an app needs of it.

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
    return Replicas(settings.engine_url, key=key, timeout=settings.engine_timeout)


def on_replicas(serving: InPlaceServing[Any], settings: EngineSettings) -> Engine:
    """An engine on SGLang servers.

    A server merges the requests it has itself, so batches need not wait for one another here.
    """

    def facts() -> Facts:
        tags = serving.replicas.tags()
        ready = sum(tag is not None for tag in tags.values())
        versions = {f"replica {url}": tag for url, tag in tags.items()}
        return {"replicas": len(tags), "replicas_ready": ready, **versions}

    return Engine(serving, settings.engine_batches, serving.running, facts)
