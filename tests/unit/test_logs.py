import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from agentprm.queue._heartbeat import Heartbeat
from agentprm.service import configure_logging

WAIT = 10.0


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is logged goes to a disk that has no room."""
    with suppress(OSError), Path("/dev/full").open("w") as stream:  # closed, it still has the line
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("test")
        yield
        structlog.contextvars.clear_contextvars()


def test_a_line_is_logged_with_its_service(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("test")
    structlog.get_logger().warning("hello", answer=42)
    structlog.contextvars.clear_contextvars()
    [line] = capfd.readouterr().err.splitlines()
    assert '"event":"hello"' in line
    assert '"service":"test"' in line
    assert '"level":"warning"' in line


@pytest.mark.parametrize("level", ["info", "warning", "error", "exception", "critical"])
def test_a_full_disk_ends_nothing_that_logs(full_disk: None, level: str) -> None:
    getattr(structlog.get_logger(), level)("hello")


def test_a_heartbeat_outlasts_what_fails_and_cannot_say_so_either(full_disk: None) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # as a command's
    beats = {"good": 0, "bad": 0}
    enough = threading.Event()

    def touch(entry_id: str) -> bool:
        beats[entry_id] += 1
        if min(beats.values()) >= 3:
            enough.set()
        if entry_id == "bad":
            raise RuntimeError
        return True

    heartbeat = Heartbeat(touch, 0.01)
    for entry_id in beats:
        heartbeat.hold(entry_id)
    assert enough.wait(WAIT)
    heartbeat.close()
