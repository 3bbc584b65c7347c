"""Answers that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from agentprm.service._problems import ProblemError

R = TypeVar("R")


async def unless_left(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """What `work` gives; it is cancelled when the client of `request` leaves.

    The body of `request` has to be read before.

    Raises:
        ProblemError: 499, the client left. The answer is for the log alone.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    leaving.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if leaving.done():
            raise ProblemError(499, "Client left", "nobody waits for the answer") from None
        raise
    finally:
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
