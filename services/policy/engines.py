"""Which engine the settings ask for, with the hot swap that suits it."""

from __future__ import annotations

from pathlib import Path

from agentprm import engines
from agentprm.in_place import InPlaceServing
from agentprm.registry import Registry
from agentprm.serving import Serving
from services.policy.engine import Engine
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.sglang import SGLangEngine
from services.policy.settings import PolicySettings


def open_engine(settings: PolicySettings) -> engines.Engine:
    """Nothing is loaded yet, no server asked."""
    return _sglang(settings) if settings.engine == "sglang" else _embedded(settings)


def _embedded(settings: PolicySettings) -> engines.Engine:
    def build(path: Path) -> Engine:
        return EmbeddedEngine.load(
            path,
            device=settings.device,
            dtype=settings.dtype,
            cache_tokens=settings.cache_tokens,
        )

    registry = Registry(settings.registry)
    return engines.Engine(Serving("policy", registry, build, lambda engine: engine.check()))


def _sglang(settings: PolicySettings) -> engines.Engine:
    replicas = engines.open_replicas(settings)

    def build(path: Path) -> SGLangEngine:
        return SGLangEngine.load(path.absolute(), replicas)

    serving = InPlaceServing("policy", Registry(settings.registry), build, replicas)
    return engines.on_replicas(serving, settings)
