"""Calls side by side: their answers in order, and nobody waits for them at a shutdown."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest

from agentprm.side_by_side import side_by_side

INTERRUPTED = """
import signal, time
from services.rollout.shutdown import Interrupted, Shutdown
from agentprm.side_by_side import side_by_side

shutdown = Shutdown()
shutdown.install()
signal.setitimer(signal.ITIMER_REAL, 0.2)
signal.signal(signal.SIGALRM, shutdown._on_signal)
try:
    with shutdown.interrupting():
        side_by_side(time.sleep, [60.0, 60.0])
except Interrupted:
    print("interrupted", flush=True)
"""


def test_all_are_asked_at_once_and_answered_in_order() -> None:
    together = threading.Barrier(5, timeout=10)

    def call(k: int) -> int:
        together.wait()
        time.sleep(0.02 * (5 - k))
        return k * k

    assert side_by_side(call, range(5)) == [0, 1, 4, 9, 16]
    assert side_by_side(call, []) == []


def test_no_more_are_under_way_than_told_and_all_in_the_context_of_the_caller() -> None:
    job: ContextVar[str] = ContextVar("job")
    under_way = most = 0
    lock = threading.Lock()

    def call(k: int) -> tuple[int, str]:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return k, job.get()

    job.set("rollouts-1")
    assert side_by_side(call, range(7), at_once=3) == [(k, "rollouts-1") for k in range(7)]
    assert most == 3


def test_nothing_is_begun_after_an_error() -> None:
    begun: list[int] = []

    def call(k: int) -> None:
        begun.append(k)
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        side_by_side(call, range(1000), at_once=1)
    assert begun == [0]


def test_an_error_of_one_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda k: 1 // k, [1, 0, 2])


def test_an_error_waits_for_no_other() -> None:
    ends = threading.Event()

    def call(k: int) -> None:
        if k == 1:
            raise ValueError("refused")
        assert ends.wait(60)

    with pytest.raises(ValueError, match="refused"):
        side_by_side(call, range(3))
    assert not ends.is_set()
    ends.set()


def test_a_signal_leaves_them_and_so_does_the_process() -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert told.stdout == "interrupted\n"
