"""What a rollout worker takes."""

from __future__ import annotations

from pydantic import Field

from agentprm.queue import QueueSettings
from agentprm.settings import Port, ProcessSettings, ReplicaURLs, ServiceURL


class RolloutSettings(ProcessSettings):
    """A rollout worker: plays the jobs of a run."""

    redis_url: str | None = Field(default=None, description="by default what REDIS_URL names")
    run: str | None = Field(
        default=None, description="name of the run; by default the one that was announced last"
    )
    env_url: ServiceURL = Field(description="the environment service")
    policy_url: ReplicaURLs = Field(
        description="the policy service; of several replicas a,b,... this worker asks one. Empty "
        "where the expert or a chat model plays all jobs"
    )
    prm_url: ReplicaURLs | None = Field(
        default=None,
        description="the PRM service; jobs that need it wait until it is healthy. Of several "
        "replicas a,b,... this worker asks one",
    )
    chat_url: ServiceURL | None = Field(
        default=None,
        description="an OpenAI-compatible endpoint, as https://api.openai.com/v1, for the jobs "
        "that a chat model plays; its key is in OPENAI_API_KEY",
    )
    prompt: str = Field(
        default="chat", description="how it is prompted: chat, state, or a Jinja2 file"
    )
    world_url: ServiceURL | None = Field(
        default=None, description="a world model, for jobs that look ahead in a learned one"
    )
    name: str = Field(default="worker", description="name in logs and records")
    claim_after: float = Field(
        default=QueueSettings().claim_after,
        gt=0,
        description="seconds without a heartbeat after which another worker takes a job over",
    )
    max_episodes: int = Field(
        default=QueueSettings().max_episodes,
        ge=1,
        description="results that may wait for the trainer, before workers wait for it",
    )
    max_preferences: int = Field(
        default=QueueSettings().max_preferences, ge=1, description="the same for preferences"
    )
    metrics_host: str = Field(default="127.0.0.1", description="where metrics are served")
    metrics_port: Port | None = Field(default=None, description="by default they are not")
