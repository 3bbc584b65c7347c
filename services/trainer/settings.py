"""What the trainer takes, and the processes that do a part of its work."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from agentprm.queue import QueueSettings
from agentprm.settings import LoadSettings, ReplicaURLs, ServiceURL


class TrainerSettings(LoadSettings):
    """Where the run is, and where the services are."""

    run: Path = Field(description="run directory, with its config.json")
    queue: str | None = Field(
        default=None, description="name of the run in Redis; default the directory's"
    )
    redis_url: str = Field(description="redis://host:port/0")
    env_url: ServiceURL = Field(description="the environment service")
    policy_url: ReplicaURLs = Field(
        description="the policy service; of several replicas a,b,...; empty where a chat model "
        "plays"
    )
    prm_url: ReplicaURLs = Field(description="the PRM service, likewise; empty too where no PRM is")
    max_jobs: int = Field(
        default=QueueSettings().max_jobs,
        ge=1,
        description="jobs that may be outstanding, those being played among them",
    )
    num_processes: int | None = Field(
        default=None, ge=1, description="processes that share a fit; default the preset's"
    )
    accelerate: str | None = Field(
        default=None, description="ddp, fsdp, or an accelerate file; default the preset's"
    )
