"""Which engine the settings ask for, with the hot swap that suits it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentprm.in_place import InPlaceServing
from agentprm.prompts import Prompt
from agentprm.registry import Registry
from agentprm.replicas import Replicas
from agentprm.serving import Serving
from services.prm.ensemble import Ensemble, load_ensemble
from services.prm.scorer import BaseScorer, Scorer
from services.prm.settings import Settings
from services.prm.sglang import OnServers, SGLangScorer

Facts = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Engine:
    """What the app needs of it.

    `concurrency` is how many batches are computed side by side; `running` is entered while the app
    runs; `facts` are for `/health`.
    """

    serving: Serving[Any]
    """Of an `Ensemble`."""
    concurrency: int
    running: Callable[[], AbstractAsyncContextManager[None]]
    facts: Callable[[], Facts]


def open_engine(settings: Settings, prompt: Prompt) -> Engine:
    """Nothing is loaded yet, no server asked."""
    if settings.engine == "sglang":
        return _sglang(settings, prompt)
    return _embedded(settings, prompt)


def _embedded(settings: Settings, prompt: Prompt) -> Engine:
    registry = Registry(settings.registry)

    def scorer(path: Path) -> BaseScorer:
        return Scorer(
            path,
            prompt,
            device=settings.device,
            dtype=settings.dtype,
            cache_bytes=int(settings.cache_gib * 2**30),
        )

    def build(path: Path) -> Ensemble:
        return load_ensemble(registry, path, prompt, scorer)

    serving = Serving("prm", registry, build, Ensemble.check)
    return Engine(serving, 1, nullcontext, dict)


def _sglang(settings: Settings, prompt: Prompt) -> Engine:
    key = os.environ.get("AGENTPRM_SGLANG_KEY")
    replicas = Replicas(settings.engine_url, key=key, timeout=settings.engine_timeout)

    registry = Registry(settings.registry)

    def scorer(path: Path) -> BaseScorer:
        return SGLangScorer(path.absolute(), prompt, replicas)

    def build(path: Path) -> OnServers:
        return OnServers.of(load_ensemble(registry, path, prompt, scorer))

    def facts() -> Facts:
        tags = replicas.tags()
        ready = sum(tag is not None for tag in tags.values())
        return {
            "replicas": len(tags),
            "replicas_ready": ready,
            **{f"replica {url}": tag for url, tag in tags.items()},
        }

    # A server merges the requests it has itself, so batches need not wait for one another here.
    serving = InPlaceServing("prm", registry, build, replicas)
    return Engine(serving, settings.engine_batches, serving.running, facts)
