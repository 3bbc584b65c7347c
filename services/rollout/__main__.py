"""`python -m services.rollout`: one rollout worker."""

from __future__ import annotations

import random
import sys
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import structlog
from prometheus_client import start_http_server

from agentprm.prompts import load_prompt
from agentprm.queue import CurrentRun, Queue, QueueError, QueueSettings
from agentprm.redis_server import given_url
from agentprm.service import configure_logging
from services.rollout.player import Player
from services.rollout.settings import RolloutSettings
from services.rollout.shutdown import Shutdown
from services.rollout.worker import Worker

if TYPE_CHECKING:
    from services.rollout.chat import ChatModel

_UNANNOUNCED = 1.0
"""Seconds between two looks for a run, while there is none."""


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


def _one_of(replicas: str | None) -> str | None:
    return random.choice(replicas.split(",")) if replicas else None


def _wanted(run: str, settings: RolloutSettings, current: CurrentRun) -> bool:
    """Whether to go on with the run: none other is announced, be it that Redis lost this one."""
    return settings.run is not None or current.read() in (run, None)


def main() -> int:
    """Work until a signal; the exit status, 1 where Redis was gone for good."""
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
    policy, prm = _one_of(settings.policy_url), _one_of(settings.prm_url)
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
