"""Calls that wait for others, side by side, and that nobody waits for any more at a shutdown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What `call` answers about each item, every one asked for in a thread of its own.

    An exception raised here, by a signal, leaves at once, and so does the first of a call: the
    others end by themselves. An executor would wait for them, and the interpreter for its threads.
    """

    def answer(item: T, into: Future[R]) -> None:
        try:
            into.set_result(call(item))
        except BaseException as error:
            into.set_exception(error)

    answers: list[Future[R]] = []
    for item in items:
        answers.append(Future())
        threading.Thread(target=answer, args=(item, answers[-1]), daemon=True).start()
    wait(answers, return_when=FIRST_EXCEPTION)
    done = sorted(answers, key=lambda each: not each.done())  # the one that failed among them
    for each in done:
        each.result()
    return [each.result() for each in answers]
