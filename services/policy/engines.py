"""Which engine the settings ask for, with the hot swap that suits it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentprm.in_place import InPlaceServing
from agentprm.registry import Registry
from agentprm.replicas import Replicas
from agentprm.serving import Serving
from services.policy.engine import Engine
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.sglang import SGLangEngine
from services.policy.settings import PolicySettings


@dataclass(frozen=True)
class Engines:
    """What the app needs of them.

    `concurrency` is how many batches are computed side by side; `running` is entered while the app
    runs; `details` are facts for `/health`.
    """

    serving: Serving[Any]
    concurrency: int
    running: Callable[[], AbstractAsyncContextManager[None]]
    details: Callable[[], dict[str, str | int | float | bool | None]]


def open_engines(settings: PolicySettings) -> Engines:
    """Nothing is loaded yet, no server asked."""
    return _sglang(settings) if settings.engine == "sglang" else _embedded(settings)


def _embedded(settings: PolicySettings) -> Engines:
    def build(path: Path) -> Engine:
        return EmbeddedEngine.load(
            path,
            device=settings.device,
            dtype=settings.dtype,
            cache_tokens=settings.cache_tokens,
        )

    serving = Serving("policy", Registry(settings.registry), build, lambda engine: engine.check())
    return Engines(serving, 1, nullcontext, dict)


def _sglang(settings: PolicySettings) -> Engines:
    key = os.environ.get("AGENTPRM_SGLANG_KEY")
    replicas = Replicas(settings.engine_url, key=key, timeout=settings.engine_timeout)

    def build(path: Path) -> SGLangEngine:
        return SGLangEngine.load(path.absolute(), replicas)

    def details() -> dict[str, str | int | float | bool | None]:
        tags = replicas.tags()
        ready = sum(tag is not None for tag in tags.values())
        versions = {f"replica {url}": tag for url, tag in tags.items()}
        return {"replicas": len(tags), "replicas_ready": ready, **versions}

    # A server merges the requests it has itself, so batches need not wait for one another here.
    serving = InPlaceServing("policy", Registry(settings.registry), build, replicas)
    return Engines(serving, settings.engine_batches, serving.running, details)
