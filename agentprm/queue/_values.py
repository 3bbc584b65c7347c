"""What the queue is given and gives back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, Field

Results = Literal["episodes", "preferences"]
"""The streams of results."""

T = TypeVar("T")


class QueueSettings(BaseModel):
    """Times and bounds of the queue; every process of a run takes the same."""

    claim_after: float = Field(default=15.0, gt=0)
    """Seconds without a heartbeat after which a job is claimed by another worker."""
    max_deliveries: int = Field(default=5, ge=1)
    """How often a job is tried before it goes to the dead letters."""
    max_jobs: int = Field(default=1024, ge=1)
    """Most jobs outstanding."""
    max_episodes: int = Field(default=64, ge=1)
    """Most results waiting in `episodes`."""
    max_preferences: int = Field(default=256, ge=1)
    """Most results waiting in `preferences`."""
    max_dead: int = Field(default=1000, ge=1)
    """Most dead letters kept, about."""
    patience: float = Field(default=60.0, ge=0)
    """Seconds that a call waits for a Redis that is gone."""


class Offer(StrEnum):
    """What became of a job that was offered."""

    QUEUED = "queued"
    KNOWN = "known"
    """Its id was published before."""
    FULL = "full"
    """The stream is at its bound; not queued."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A record taken from a stream; `deliveries` counts this one."""

    id: str
    record: T
    deliveries: int = 1


@dataclass(frozen=True)
class DeadJob:
    """A job given up, and why."""

    job_id: str
    reason: str
