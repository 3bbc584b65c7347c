"""How a run is made known to workers that run already."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis

from agentprm.cli.announce import QUEUE_NAME, announced, queue_name
from agentprm.cli.common import new_or_same
from agentprm.cli.machine import train_connected, train_run
from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.cli.services import Endpoints
from agentprm.config import load_config
from agentprm.protocol import RolloutJob
from agentprm.queue import CurrentRun, Queue, QueueError, _current, _lease
from agentprm.redis_server import RedisServer
from services.rollout.__main__ import _wanted
from services.rollout.settings import RolloutSettings
from services.trainer.exclusive import exclusive


def announce(run: Path, url: str) -> str:
    run.mkdir(exist_ok=True)
    with announced(run, url) as queue, closing(CurrentRun(url)) as current:
        assert current.read() == queue.run
        return queue.run


def test_every_run_has_a_name_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    """A copy of it is another: of two under one name each would take the other's results."""
    run, other, copy = tmp_path / "tiny", tmp_path / "other", tmp_path / "copy"
    run.mkdir()
    other.mkdir()
    name = queue_name(run)
    assert name == queue_name(run) != queue_name(other)
    shutil.copytree(run, copy)
    assert queue_name(copy) != name
    assert queue_name(run.rename(tmp_path / "moved")) == name


def test_services_that_run_already_are_of_one_run_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two, the workers of one would play with the other's weights."""
    monkeypatch.delenv(QUEUE_NAME, raising=False)
    with RedisServer(tmp_path / "redis") as server:
        first = announce(tmp_path / "tiny", server.url)
        with announced(tmp_path / "tiny", server.url):
            with pytest.raises(QueueError, match=QUEUE_NAME):
                announce(tmp_path / "other", server.url)
            assert (tmp_path / "current").resolve() == tmp_path / "tiny"
        assert announce(tmp_path / "other", server.url) == first


def test_settings_are_changed_before_anything_was_recorded_with_their_queue(
    tmp_path: Path,
) -> None:
    """Jobs that were queued by those of before are not among those of the new ones."""
    new_or_same(tmp_path, load_config("smoke", seed=0), "go on")
    before = queue_name(tmp_path)
    new_or_same(tmp_path, load_config("smoke", seed=7), "go on")
    assert queue_name(tmp_path) != before


def test_a_run_that_is_given_as_the_current_one_stays_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as server:
        announce(tmp_path / "tiny", server.url)
        announce(tmp_path / "current", server.url)
    assert (tmp_path / "current").resolve() == tmp_path / "tiny"


def test_a_run_that_is_worked_on_is_not_announced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9")
    endpoints = Endpoints("http://env", "http://policy", "http://prm")
    with exclusive(tmp_path), pytest.raises(ProcessFailed, match="being trained or measured"):
        train_connected(tmp_path, endpoints, quiet=True)


def test_runs_of_one_fixed_name_do_not_see_each_others_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(QUEUE_NAME, "fixed")
    job = RolloutJob(id="demonstrations-0000", games=["train/a/b"], seed=0)
    with RedisServer(tmp_path / "redis") as server, Queue(server.url, "fixed") as queue:
        for run in ("first", "second", "first"):
            assert announce(tmp_path / run, server.url) == "fixed"
            assert queue.publish(job)
            assert announce(tmp_path / run, server.url) == "fixed"  # resumed: its job is kept
            assert not queue.publish(job)


def test_a_second_run_does_not_get_a_name_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it become the current one; of a run that was killed the name is its own at once."""
    monkeypatch.setenv(QUEUE_NAME, "fixed")
    monkeypatch.setattr(_lease, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(_lease, "_RENEW_SECONDS", 0.2)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with RedisServer(tmp_path / "redis") as server:
        with announced(first, server.url):
            time.sleep(1.5)  # longer than the lease, which is renewed
            with pytest.raises(QueueError, match=QUEUE_NAME):
                announce(second, server.url)
            assert (tmp_path / "current").resolve() == first
        announce(second, server.url)  # `first` has ended

        with closing(redis.Redis.from_url(server.url)) as client:  # what one that is killed leaves
            client.set("agentprm:fixed:lease", queue_name(first), px=60_000)
        with pytest.raises(QueueError, match=QUEUE_NAME):
            announce(second, server.url)
        announce(first, server.url)


def test_a_worker_goes_on_with_its_run_until_another_isannounced(tmp_path: Path) -> None:
    """Also where Redis came back without its data, and with it without the announcement."""
    settings = RolloutSettings(env_url="http://env", policy_url="http://policy")
    with RedisServer(tmp_path / "redis") as server, closing(CurrentRun(server.url)) as current:
        current.announce("first")
        assert _wanted("first", settings, current)
        current._link.redis.flushall()
        assert _wanted("first", settings, current)
        current.announce("second")
        assert not _wanted("first", settings, current)


def test_a_redis_that_lost_the_announcement_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that workers find the run that were started since; of another's nothing is undone."""
    monkeypatch.setattr(_current, "_REPEAT_SECONDS", 0.1)
    with (
        RedisServer(tmp_path / "redis") as server,
        closing(CurrentRun(server.url)) as announced,
        closing(CurrentRun(server.url)) as current,
    ):
        announced.announce("first")
        current._link.redis.flushall()
        deadline = time.monotonic() + 20
        while current.read() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert current.read() == "first"
        current._link.redis.set("agentprm:current", "second")
        time.sleep(0.5)
        assert current.read() == "second"


def test_a_run_whose_name_another_takes_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the machine slept for longer than the lease."""
    monkeypatch.setenv(QUEUE_NAME, "fixed")
    monkeypatch.setattr(_lease, "_RENEW_SECONDS", 0.2)
    run = tmp_path / "run"
    run.mkdir()
    endpoints = Endpoints(env="http://e", policy="http://p", prm="http://q")
    with RedisServer(tmp_path / "redis") as server, closing(redis.Redis.from_url(server.url)) as r:

        def spawn(self: Machine, *_: object) -> subprocess.Popen[bytes]:
            r.set("agentprm:fixed:lease", "another", px=60_000)
            return subprocess.Popen(["sleep", "60"])

        monkeypatch.setattr(Machine, "_spawn", spawn)
        monkeypatch.setenv("REDIS_URL", server.url)
        with pytest.raises(ProcessFailed, match="another run has taken the name 'fixed'"):
            train_connected(run, endpoints, quiet=True)
        assert r.get("agentprm:fixed:lease") == b"another"


@pytest.mark.parametrize("connected", [True, False])
def test_no_flag_of_a_process_holds_the_password_of_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    """Flags are everyone's to read; the environment is not."""
    endpoints = Endpoints(env="http://e", policy="http://p", prm="http://q")
    spawned: list[tuple[list[str], str]] = []

    def spawn(self: Machine, argv: list[str], *_: object) -> subprocess.Popen[bytes]:
        spawned.append((argv, self._environment["AGENTPRM_REDIS_URL"]))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(Machine, "_spawn", spawn)
    monkeypatch.setattr("agentprm.cli.machine.start_services", lambda *_: endpoints)
    run = tmp_path / "run"
    run.mkdir()
    with RedisServer(tmp_path / "redis") as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.config_set("requirepass", "secret")
        url = server.url.replace("unix://", "unix://:secret@")
        monkeypatch.setenv("REDIS_URL", url)
        if connected:
            train_connected(run, endpoints, quiet=True)
        else:
            train_run(run, load_config("smoke"), "games", quiet=True)
    assert {given for _, given in spawned} == {url}
    assert len(spawned) >= (1 if connected else 3)
    assert not any("secret" in flag for argv, _ in spawned for flag in argv)
