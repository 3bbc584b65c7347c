"""Which engine the settings ask for, with the hot swap that suits it."""

from __future__ import annotations

from pathlib import Path

from agentprm.ensembles import read_members
from agentprm.models.backend import Backend, on_replicas, open_replicas
from agentprm.models.devices import bytes_to_keep, pick_device
from agentprm.models.in_place import InPlaceServing
from agentprm.models.serving import Serving
from agentprm.prompts import PromptTemplate
from agentprm.registry import Registry
from services.prm.ensemble import Ensemble, load_ensemble
from services.prm.scorer import BaseScorer, Scorer
from services.prm.settings import CACHE_GIB, PRMServiceSettings
from services.prm.sglang import OnServers, SGLangScorer


def open_backend(settings: PRMServiceSettings, prompt: PromptTemplate) -> Backend:
    """The engine of the settings. Nothing is loaded yet, no server asked."""
    if settings.engine == "sglang":
        return _sglang(settings, prompt)
    return _embedded(settings, prompt)


def _embedded(settings: PRMServiceSettings, prompt: PromptTemplate) -> Backend:
    registry = Registry(settings.registry)

    def build(path: Path) -> Ensemble:
        device, models = pick_device(settings.device), len(read_members(path)) or 1
        kept = bytes_to_keep(settings.cache_gib, device, on_cpu=CACHE_GIB, models=models)

        def scorer(path: Path) -> BaseScorer:
            return Scorer(
                path, prompt, device=settings.device, dtype=settings.dtype, cache_bytes=kept
            )

        return load_ensemble(registry, path, prompt, scorer)

    serving = Serving("prm", registry, build, _check, timeout=settings.load_timeout)
    return Backend(serving)


def _sglang(settings: PRMServiceSettings, prompt: PromptTemplate) -> Backend:
    replicas = open_replicas(settings)
    registry = Registry(settings.registry)

    def scorer(path: Path) -> BaseScorer:
        return SGLangScorer(path.absolute(), prompt, replicas)

    def build(path: Path) -> OnServers:
        return OnServers.of(load_ensemble(registry, path, prompt, scorer))

    serving = InPlaceServing(
        "prm", registry, build, _check, replicas, timeout=settings.load_timeout
    )
    return on_replicas(serving, settings)


def _check(ensemble: Ensemble, _: Path) -> None:
    ensemble.check()
