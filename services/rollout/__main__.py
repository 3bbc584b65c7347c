"""`python -m services.rollout`: one rollout worker."""

from __future__ import annotations

import random
import sys

import structlog
from prometheus_client import start_http_server
from pydantic import Field

from agentprm.queue import Queue, QueueError, QueueSettings
from agentprm.redis_server import given_url
from agentprm.service import configure_logging
from agentprm.settings import ProcessSettings
from services.rollout.player import Player
from services.rollout.shutdown import Shutdown
from services.rollout.worker import Worker


class RolloutSettings(ProcessSettings):
    """A rollout worker: plays the jobs of a run."""

    redis_url: str | None = Field(default=None, description="by default what REDIS_URL names")
    run: str = Field(description="name of the run")
    env_url: str = Field(description="the environment service")
    policy_url: str = Field(
        description="the policy service; of several replicas a,b,... this worker asks one"
    )
    prm_url: str | None = Field(
        default=None,
        description="the PRM service; jobs that need it wait until it is healthy. Of several "
        "replicas a,b,... this worker asks one",
    )
    name: str = Field(default="worker", description="name in logs and records")
    claim_after: float = Field(
        default=QueueSettings().claim_after,
        gt=0,
        description="seconds without a heartbeat after which another worker takes a job over",
    )
    metrics_host: str = Field(default="127.0.0.1", description="where metrics are served")
    metrics_port: int | None = Field(default=None, description="by default they are not")


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
    player = Player(settings.env_url, policy, prm)
    try:
        with Queue(
            redis_url,
            settings.run,
            name=settings.name,
            settings=QueueSettings(claim_after=settings.claim_after),
            stopped=shutdown.requested,
        ) as queue:
            Worker(queue, player, shutdown).run()
    except QueueError as error:
        structlog.get_logger().error("worker ends", error=str(error))
        return 0 if shutdown.requested.is_set() else 1
    structlog.get_logger().info("worker ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
