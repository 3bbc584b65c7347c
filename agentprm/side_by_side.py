"""Calls that wait for others, side by side, and that nobody waits for any more at a shutdown."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 32
"""Calls under way at once, by default; who answers them makes batches of them."""


def side_by_side(call: Callable[[T], R], items: Iterable[T], *, at_once: int = AT_ONCE) -> list[R]:
    """What `call` answers about each item; threads of their own ask, in the caller's context.

    An exception raised here, by a signal, leaves at once, and so does the first of a call: what is
    under way ends by itself, and nothing more is begun. An executor would wait for its threads, and
    so would the interpreter at its end.
    """
    answers: list[Future[R]] = []
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        answers.append(Future())
        waiting.append((item, answers[-1]))

    def work() -> None:
        while True:
            try:
                item, answer = waiting.popleft()
            except IndexError:  # none is left
                return
            try:
                answer.set_result(call(item))
            except BaseException as error:
                waiting.clear()
                answer.set_exception(error)

    try:
        for _ in range(min(at_once, len(answers))):
            context = contextvars.copy_context()  # it names the job that the calls are made for
            threading.Thread(target=context.run, args=(work,), daemon=True).start()
        ended, _ = wait(answers, return_when=FIRST_EXCEPTION)
    finally:
        waiting.clear()
    for answer in ended:
        answer.result()  # raises what was raised
    return [answer.result() for answer in answers]
