"""A connection to Redis that outlasts its absence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog
import tenacity
from redis.backoff import NoBackoff
from redis.retry import Retry

T = TypeVar("T")

SOCKET_TIMEOUT = 10.0
"""Seconds that one answer may take. Longer than any blocking read, which asks for a second."""

_log = structlog.get_logger()


class QueueError(Exception):
    """Redis did not answer in time or let us in, another run has the name, or a wait was ended."""


class WaitEnded(QueueError):
    """A wait for room was ended: by the shutdown, or since nobody wants the run any more."""


_PASSES = (
    redis.ConnectionError,  # `LOADING` included
    redis.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.ReadOnlyError,
    redis.exceptions.TryAgainError,
)


def _transient(error: BaseException) -> bool:
    """What passes: Redis is away, full, or not yet or no longer to be written to.

    A refused password does not.
    """
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return False
    # `MISCONF`, where its disk is full, has no class of its own; a script's error names no class.
    return isinstance(error, _PASSES) or any(
        code in str(error) for code in ("MISCONF", "OOM command", "READONLY")
    )


class Link:
    """Calls Redis, and calls again while it is away.

    A call may have been carried out although its answer was lost, so whatever is called must be
    safe to repeat. Safe to share between threads.
    """

    def __init__(self, url: str, *, patience: float, stopped: threading.Event) -> None:
        try:
            self.redis = redis.Redis.from_url(
                url,
                protocol=2,
                socket_timeout=SOCKET_TIMEOUT,
                socket_connect_timeout=SOCKET_TIMEOUT,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:  # of which the message may hold a part of the password
            raise QueueError(
                "not the URL of a Redis, such as redis://:PASSWORD@HOST:6379/0, where special "
                "characters of the password are percent-encoded"
            ) from None
        self._patience = patience
        self._stopped = stopped
        self._lock = threading.Lock()
        self._gone_since: float | None = None

    def call(self, command: Callable[[], T], *, patience: float | None = None) -> T:
        """The command's answer.

        Raises:
            QueueError: Redis stayed away for `patience` seconds, or until the shutdown; or it
                refused the command for good.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            stop=tenacity.stop_after_delay(self._patience if patience is None else patience)
            | tenacity.stop_when_event_set(self._stopped),
            sleep=tenacity.sleep_using_event(self._stopped),
            reraise=True,
        )
        try:
            answer: T = retrying(self._once, command)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise QueueError(f"Redis does not answer: {error}") from error
        except redis.RedisError as error:
            raise QueueError(f"Redis refuses: {error}") from error
        return answer

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()

    def _once(self, command: Callable[[], T]) -> T:
        try:
            answer = command()
        except redis.RedisError as error:
            if _transient(error):
                self._note_gone(error)
            raise
        self._note_back()
        return answer

    def _note_gone(self, error: Exception) -> None:
        with self._lock:
            if self._gone_since is None:
                self._gone_since = time.monotonic()
                _log.warning("redis gone, trying again", error=str(error))

    def _note_back(self) -> None:
        with self._lock:
            if self._gone_since is not None:
                seconds = round(time.monotonic() - self._gone_since, 1)
                self._gone_since = None
                _log.info("redis back", seconds=seconds)
