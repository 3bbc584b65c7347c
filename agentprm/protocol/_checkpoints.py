"""Checkpoints and health, of every service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentprm.protocol._base import Record, Request


class LoadCheckpoint(Request):
    """Serve the checkpoint `version` (such as `policy/1`) of the registry."""

    version: str = Field(pattern=r"^[a-z]+/[0-9]+(\.[0-9]+)?$", max_length=40)
    mark: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="`Registry.mark` of the checkpoint that is meant: a service that reads another "
        "run's registry refuses the one it has by that version",
    )


class Loaded(Record):
    """What serves now, and how long requests had to wait for the swap."""

    version: str
    previous: str | None
    load_seconds: float
    pause_seconds: float


class Health(Record):
    """What runs, and whether it can serve. `details` are the service's own facts."""

    service: str
    status: Literal["healthy", "loading"]
    """`loading` until there is a checkpoint to serve. OpenEnv's clients wait for `healthy`."""
    package_version: str
    version: str | None = None
    """The checkpoint that serves, for the services that serve one."""
    pid: int | None = None
    """The process that answers, by its number on its own machine."""
    details: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
