"""A service of which several replicas run: they are told of a checkpoint all together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import structlog

from agentprm.client import PolicyClient, PRMClient, ServiceError
from agentprm.protocol import Loaded
from agentprm.registry import Registry

C = TypeVar("C", PolicyClient, PRMClient)

log = structlog.get_logger()


class Fleet(Generic[C]):
    """Clients of all replicas of the policy or of the PRM service.

    With a `registry`, that of the run, they serve no checkpoint of another run by the same name.
    """

    def __init__(self, clients: Sequence[C], registry: Registry | None = None) -> None:
        self._registry = registry
        self._clients: list[C] = list(clients)
        self._turns: Iterator[C] = itertools.cycle(self._clients)

    @property
    def version(self) -> str | None:
        """What all replicas serve; None where they do not agree, or of one it is not known: it has
        nothing yet, or cannot be reached, as while it restarts.
        """
        versions = {_version(client) for client in self._clients}
        return versions.pop() if len(versions) == 1 else None

    @property
    def next(self) -> C:
        """One of the replicas, each in its turn."""
        return next(self._turns)

    def load(self, version: str) -> None:
        """Have every replica serve `version`, at the same time.

        Raises:
            ServiceError: one did not, as where it reads the registry of another run; those that
                had swapped serve again what they did before.
        """
        mark = None if self._registry is None else self._registry.mark(version)
        with ThreadPoolExecutor(len(self._clients)) as threads:
            results = list(threads.map(lambda client: _tried(client, version, mark), self._clients))
        error = next((r for r in results if isinstance(r, ServiceError)), None)
        if error is None:
            return
        for client, result in zip(self._clients, results, strict=True):
            if isinstance(result, Loaded) and result.previous is not None:
                _put_back(client, result.previous)
        raise error


def _version(client: C) -> str | None:
    try:
        return client.health().version
    except ServiceError:
        return None


def _tried(client: C, version: str, mark: str | None) -> Loaded | ServiceError:
    try:
        return client.load(version, mark)
    except ServiceError as error:
        return error


def _put_back(client: C, version: str) -> None:
    try:
        client.load(version)
    except ServiceError as error:  # the first error is the one to tell
        log.warning("a replica could not be put back", version=version, reason=str(error))
