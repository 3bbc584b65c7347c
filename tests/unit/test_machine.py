"""What counts as a service that is up."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agentprm.cli.ports import answers, free_port, require_free
from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.cli.services import start_sglang
from agentprm.protocol import Health
from agentprm.redis_server import RedisServer
from agentprm.service import create_app
from tests.fake_services import serving

LISTENS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ENDS = "import sys, time; time.sleep(2); sys.exit('address already in use')"
HEALTH = Health(service="prm", status="healthy", package_version="0", version="prm/7")


@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")],
)
def test_a_service_is_reached_where_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, reached: str
) -> None:
    monkeypatch.setenv("AGENTPRM_NO_AUTH", "true")
    port = free_port()
    try:
        require_free(host, port)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with Machine(tmp_path, host=host) as machine:
        games = ["--environment", "examples.sorting:Sorting"]
        url = machine.start("env", "services.env", *games, port=port)
        assert url == f"http://{reached}:{port}"
        machine.wait_reachable(["env"])


def test_a_free_port_is_given_to_no_outgoing_connection() -> None:
    """The one to a dead service would otherwise be its own other end, and hold its port."""
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert max(free_port() for _ in range(50)) < int(lowest)


def test_a_port_where_another_listens_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr("agentprm.cli.ports._LISTENED", range(port, port + 1))
    assert free_port() == port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="all of them"):
        free_port()


def test_a_port_that_another_has_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Machine(tmp_path) as machine:
        port = taken.getsockname()[1]
        with pytest.raises(ProcessFailed, match=f"prm cannot listen on 127.0.0.1:{port}.*--port"):
            machine.start("prm", "services.prm", port=port)
        with pytest.raises(ProcessFailed, match="sglang cannot listen"):
            machine.start_command("sglang", ["sleep", "60"], port=port)
        assert not (tmp_path / "processes.json").exists()


def test_another_service_at_the_port_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """It came while ours was starting, which cannot listen any more."""
    port = free_port()
    with Machine(tmp_path) as machine:
        machine.start_command("prm", [sys.executable, "-c", ENDS], port=port)
        with serving(create_app("prm", lambda: HEALTH), port) as url:
            assert answers(url, os.getpid())
            with pytest.raises(ProcessFailed, match=r"(?s)prm ended.*address already in use"):
                machine.wait_reachable(["prm"])


@pytest.mark.parametrize(("load_timeout", "seconds"), [(None, 1700.0), ("3000", 4100.0)])
def test_a_start_may_take_as_long_as_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load_timeout: str | None, seconds: float
) -> None:
    """By a clock on which all of `seconds` pass between two looks."""
    monkeypatch.delenv("AGENTPRM_LOAD_TIMEOUT", raising=False)
    if load_timeout:
        monkeypatch.setenv("AGENTPRM_LOAD_TIMEOUT", load_timeout)
    port = free_port()
    with Machine(tmp_path) as machine:
        machine.start_command("prm", [sys.executable, "-c", LISTENS, str(port)], port=port)
        clock = itertools.chain([0.0], itertools.repeat(seconds))
        with monkeypatch.context() as patch:
            fake = SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep)
            patch.setattr("agentprm.cli.processes.time", fake)
            machine.wait_reachable(["prm"])


def test_of_the_log_only_what_this_start_wrote_is_told(tmp_path: Path) -> None:
    code = "import sys; sys.exit('out of ' + sys.argv[1])"
    for what, other in (("patience", "memory"), ("memory", "patience")):
        with Machine(tmp_path) as machine:
            argv = [sys.executable, "-c", code, what]
            machine.start_command("prm", argv, port=free_port())
            with pytest.raises(ProcessFailed, match=f"out of {what}") as failed:
                machine.wait_reachable(["prm"])
        assert other not in str(failed.value)


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process writes on goes to where it is read, and the last of before is kept."""
    monkeypatch.setattr("agentprm.cli.log_file._LARGEST", 2_000)
    code = "import itertools, os\nfor i in itertools.count(): os.write(1, b'line %09d\\n' % i)"
    log, before = tmp_path / "logs" / "prm.log", tmp_path / "logs" / "prm.1.log"
    with Machine(tmp_path) as machine:
        machine.start_command("prm", [sys.executable, "-c", code], port=free_port())
        machine.watch("prm", unless=before.exists)
        moved = before.read_text().splitlines()
        assert moved[0] == "line 000000000"
        deadline = time.monotonic() + 30
        while log.stat().st_size == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert log.read_bytes()[:5] == b"line "  # no hole where the file was longer before


def test_one_that_is_not_up_in_time_is_told_with_its_log(tmp_path: Path) -> None:
    code = "import time; print('downloading', flush=True); time.sleep(60)"
    with Machine(tmp_path) as machine:
        machine.start_command("sglang", [sys.executable, "-c", code], port=free_port())
        with pytest.raises(ProcessFailed, match=r"(?s)sglang is not up after 3 s.*downloading"):
            machine.wait_reachable(["sglang"], 3.0)


def test_a_trainer_that_is_killed_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each time it ran for half an hour, as one does whose fit is too large."""
    clock = itertools.count(0.0, 1800.0)
    with Machine(tmp_path) as machine:
        fake = SimpleNamespace(monotonic=lambda: next(clock))
        monkeypatch.setattr("agentprm.cli.restarts.time", fake)
        code = "import os; os.kill(os.getpid(), 9)"
        machine.start_command("trainer", [sys.executable, "-c", code], port=free_port())
        with pytest.raises(ProcessFailed, match=r"trainer ended 6 times .* where memory runs out"):
            machine.watch("trainer")


def test_a_command_ends_with_what_it_waits_for(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        machine.start("well", "platform", in_terminal=True, quiet=True)
        assert machine.finish("well")
        machine.start("ill", "no.such.module", in_terminal=True, quiet=True)
        with pytest.raises(ProcessFailed, match="ill ended with code 1; its messages say why"):
            machine.finish("ill")


def test_a_service_is_left_where_something_else_has_come_up(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        machine.start_command("sleep", ["sleep", "60"], port=free_port())
        assert not machine.finish("sleep", unless=lambda: True)


def test_a_redis_that_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    """As one does whose disk is full: it cannot write its file."""
    starts = []
    ended = SimpleNamespace(
        pid=None,
        url="unix:///nowhere",
        log=tmp_path / "redis.log",
        start=lambda: starts.append(1),
        close=lambda: None,
    )
    with Machine(tmp_path) as machine:
        machine.start_redis(cast("RedisServer", ended))
        with pytest.raises(ProcessFailed, match=r"disk is full; .*redis\.log says why"):
            machine.watch_all()
    assert len(starts) == 6


def test_a_wrong_value_in_the_environment_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTPRM_LOAD_TIMEOUT", "soon")
    with Machine(tmp_path) as machine, pytest.raises(ProcessFailed, match="load_timeout"):
        machine.wait_reachable([])


@pytest.mark.parametrize("command", ["serve {model} --json {'a':1}", "serve {model} '", "serve {}"])
def test_a_command_for_sglang_that_cannot_be_read_is_told(tmp_path: Path, command: str) -> None:
    with (
        Machine(tmp_path) as machine,
        pytest.raises(ProcessFailed, match=r"knows \{model\} and \{port\}"),
    ):
        start_sglang(machine, tmp_path, command)


def test_a_service_that_died_serves_nothing(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        port = free_port()
        machine.start_command("policy", [sys.executable, "-c", "print('no GPU')"], port=port)
        with pytest.raises(ProcessFailed, match="policy does not say what it serves"):
            machine.require_serving("policy", "policy/0")
