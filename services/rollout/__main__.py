"""`python -m services.rollout`: one rollout worker."""

from __future__ import annotations

import random
import sys
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import structlog
from prometheus_client import start_http_server
from pydantic import Field

from agentprm.prompts import load_prompt
from agentprm.queue import CurrentRun, Queue, QueueError, QueueSettings
from agentprm.redis_server import given_url
from agentprm.service import configure_logging
from agentprm.settings import ProcessSettings
from services.rollout.player import Player
from services.rollout.shutdown import Shutdown
from services.rollout.worker import Worker

if TYPE_CHECKING:
    from services.rollout.chat import ChatModel

_UNANNOUNCED = 1.0
"""Seconds between two looks for a run, while there is none."""


class RolloutSettings(ProcessSettings):
    """A rollout worker: plays the jobs of a run."""

    redis_url: str | None = Field(default=None, description="by default what REDIS_URL names")
    run: str | None = Field(
        default=None, description="name of the run; by default the one that was announced last"
    )
    env_url: str = Field(description="the environment service")
    policy_url: str = Field(
        description="the policy service; of several replicas a,b,... this worker asks one"
    )
    prm_url: str | None = Field(
        default=None,
        description="the PRM service; jobs that need it wait until it is healthy. Of several "
        "replicas a,b,... this worker asks one",
    )
    chat_url: str | None = Field(
        default=None,
        description="an OpenAI-compatible endpoint, as https://api.openai.com/v1, for the jobs "
        "that a chat model plays; its key is in OPENAI_API_KEY",
    )
    prompt: str = Field(
        default="chat", description="how it is prompted: chat, state, or a Jinja2 file"
    )
    world_url: str | None = Field(
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
    metrics_port: int | None = Field(default=None, description="by default they are not")


def _queue(url: str, run: str, settings: RolloutSettings, shutdown: Shutdown) -> Queue:
    return Queue(
        url,
        run,
        name=settings.name,
        settings=QueueSettings(
            claim_after=settings.claim_after,
            max_episodes=settings.max_episodes,
            max_preferences=settings.max_preferences,
        ),
        stopped=shutdown.requested,
    )


def _chat_model(settings: RolloutSettings) -> ChatModel | None:
    if settings.chat_url is None:
        return None
    from services.rollout.chat import ChatModel  # openai is an extra

    return ChatModel(settings.chat_url, load_prompt(settings.prompt))


def _wanted(run: str, settings: RolloutSettings, current: CurrentRun) -> bool:
    """Whether to go on with the run: none other is announced, be it that Redis lost this one."""
    return settings.run is not None or current.read() in (run, None)


def main() -> int:
    """Work until a signal; the exit status."""
    settings = RolloutSettings.from_command_line()
    configure_logging("rollout")
    redis_url = settings.redis_url or given_url()
    if redis_url is None:
        sys.exit("No Redis: give --redis-url, or set REDIS_URL.")
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, settings.metrics_host)
    shutdown = Shutdown()
    shutdown.install()
    # All turns of an episode go to one replica, which keeps their common beginning in its cache.
    policy = random.choice(settings.policy_url.split(","))
    prm = random.choice(settings.prm_url.split(",")) if settings.prm_url else None
    player = Player(settings.env_url, policy, prm, settings.world_url, chat=_chat_model(settings))
    try:
        with closing(CurrentRun(redis_url, stopped=shutdown.requested)) as current:
            while not shutdown.requested.is_set():
                run = settings.run or current.read()
                if run is None:
                    shutdown.requested.wait(_UNANNOUNCED)
                    continue
                wanted = partial(_wanted, run, settings, current)
                with _queue(redis_url, run, settings, shutdown) as queue:
                    Worker(queue, player, shutdown).run(wanted)
    except QueueError as error:
        structlog.get_logger().error("worker ends", error=str(error))
        return 0 if shutdown.requested.is_set() else 1
    structlog.get_logger().info("worker ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
