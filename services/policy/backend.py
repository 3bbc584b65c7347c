"""Which engine the settings ask for, with the hot swap that suits it."""

from __future__ import annotations

from pathlib import Path

from agentprm.models.backend import Backend, on_replicas, open_replicas
from agentprm.models.devices import bytes_to_keep, pick_device
from agentprm.models.in_place import InPlaceServing
from agentprm.models.serving import Serving
from agentprm.prompts import PromptTemplate
from agentprm.registry import Registry
from services.policy.canary import check
from services.policy.engine import Engine
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.sglang import SGLangEngine
from services.policy.settings import CACHE_GIB, PolicySettings


def open_backend(settings: PolicySettings, prompt: PromptTemplate) -> Backend:
    """The engine of the settings. Nothing is loaded yet, no server asked."""
    if settings.engine == "sglang":
        return _sglang(settings, prompt)
    return _embedded(settings, prompt)


def _embedded(settings: PolicySettings, prompt: PromptTemplate) -> Backend:
    def build(path: Path) -> Engine:
        device = pick_device(settings.device)
        return EmbeddedEngine.load(
            path,
            device=settings.device,
            dtype=settings.dtype,
            cache_bytes=bytes_to_keep(settings.cache_gib, device, on_cpu=CACHE_GIB),
        )

    serving = Serving(
        "policy",
        Registry(settings.registry),
        build,
        lambda engine, path: check(engine, path, prompt),
        timeout=settings.load_timeout,
    )
    return Backend(serving)


def _sglang(settings: PolicySettings, prompt: PromptTemplate) -> Backend:
    replicas = open_replicas(settings)

    def build(path: Path) -> SGLangEngine:
        return SGLangEngine.load(path.absolute(), replicas)

    serving = InPlaceServing(
        "policy",
        Registry(settings.registry),
        build,
        lambda engine, path: check(engine, path, prompt),
        replicas,
        timeout=settings.load_timeout,
    )
    return on_replicas(serving, settings)
