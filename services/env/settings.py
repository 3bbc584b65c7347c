"""What the environment service takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from agentprm.protocol import MAX_POOL, MAX_STEPS
from agentprm.settings import Port, ServiceSettings


def _default_data() -> Path:
    """Where alfworld itself would look."""
    return Path(os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld")


class EnvSettings(ServiceSettings):
    """The environment service: games as sessions over HTTP."""

    port: Port = Field(default=8001, description="port to listen on")
    data: Path = Field(
        default_factory=_default_data,
        description="what alfworld-download filled, by default $ALFWORLD_DATA or ~/.cache/alfworld",
    )
    generate: bool = Field(default=False, description="generate games where there are none")
    index: Path | None = Field(
        default=None, description="file that caches the game index, by default beside the data"
    )
    environment: str | None = Field(
        default=None, description="in place of ALFWorld an environment of your own: module:Class"
    )
    engine: Literal["compiled", "textworld"] = Field(
        default="compiled", description="what plays the games; textworld is the reference"
    )
    capacity: int = Field(
        default=4096, ge=1, description="most sessions; with textworld --pool says"
    )
    pool: int = Field(
        default=4,
        ge=1,
        le=MAX_POOL,
        description="TextWorld processes, one a session; or threads of an environment of your own",
    )
    recycle: int = Field(default=50, ge=1, description="games after which a process is replaced")
    max_steps: int = Field(
        default=30, ge=1, le=MAX_STEPS, description="step limit unless a request's"
    )
    idle_seconds: float = Field(default=300.0, gt=0, description="sessions idle longer are closed")
    privileged: bool = Field(default=False, description="offer the expert and the hidden state")
    expert: Literal["search", "handcoded"] = Field(
        default="search",
        description="search reads the text alone; handcoded is alfworld's own, with textworld",
    )
