"""Asking about many at once, of which one may be too long for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from agentprm.calls import ServiceError
from agentprm.protocol import CONTEXT_TOO_LONG

T = TypeVar("T")
R = TypeVar("R")


def those_that_fit(
    items: Sequence[T], ask: Callable[[Sequence[T], str], Sequence[R]], half: str = ""
) -> list[R | None]:
    """What `ask` answers about each item; None about one that is too long even by itself.

    Where one is too long they are asked about in halves. `ask` also takes which half it is, such as
    `/0/1`, and nothing for all, so that equal draws do not recur.

    Raises:
        ServiceError: what `ask` raises for another reason.
    """
    try:
        return [*ask(items, half)]
    except ServiceError as error:
        if error.title != CONTEXT_TOO_LONG:
            raise
    if len(items) == 1:
        return [None]
    middle = len(items) // 2
    first = those_that_fit(items[:middle], ask, f"{half}/0")
    return first + those_that_fit(items[middle:], ask, f"{half}/1")
