"""`agentprm up` on checkpoints as others publish them, with a prompt of the authors' shape."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agentprm.cli.ports import free_port
from agentprm.client import PolicyClient, PRMClient
from agentprm.prompts import load_prompt
from agentprm.protocol import ActRequest, Checkpoint, Choice, ScoreRequest
from tests.llama import TEMPLATE, publish
from tests.scorers import tiny_scorer
from tests.unit.test_published_checkpoints import STATE


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The first port of what was started."""
    (tmp_path / "authors.j2").write_text(TEMPLATE)
    port = free_port()
    command = [sys.executable, "-m", "agentprm.cli", "up", "--port", str(port), "--device", "cpu"]
    command += ["--policy", str(publish(tmp_path / "policy", prm=False))]
    command += ["--prm", str(publish(tmp_path / "prm", prm=True))]
    command += ["--prompt", str(tmp_path / "authors.j2")]
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=_environment())
    try:
        for k in (1, 2):
            _wait(process, f"http://127.0.0.1:{port + k}/health")
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        signal.signal(signal.SIGINT, previous)


def test_they_act_and_score(port: int, tmp_path: Path) -> None:
    with PolicyClient(f"http://127.0.0.1:{port + 1}") as policy:
        answer = policy.act(ActRequest(states=[STATE], n=4, prm=True, seed=0))
    candidates = answer.results[0].candidates
    assert (answer.policy_version, answer.prm_version) == ("policy/0", "prm/0")
    assert answer.template_hash == load_prompt(str(tmp_path / "authors.j2")).hash
    assert all(candidate.action.command in STATE.admissible for candidate in candidates)
    choice = Choice(state=STATE, actions=[candidate.action for candidate in candidates])
    with PRMClient(f"http://127.0.0.1:{port + 2}") as prm:
        scores = prm.score(ScoreRequest(choices=[choice])).choices[0]
        card = prm.model()
    assert scores == pytest.approx([candidate.q for candidate in candidates], abs=1e-5)
    assert card.checkpoints == [Checkpoint(version="prm/0")]


def test_it_ends_where_a_service_refuses_its_checkpoint(tmp_path: Path) -> None:
    tiny_scorer(tmp_path / "prm", 0, labels=2)
    command = [sys.executable, "-m", "agentprm.cli", "up", "--port", str(free_port())]
    command += ["--prm", str(tmp_path / "prm"), "--device", "cpu"]
    ended = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "prm does not serve prm/0" in ended.stderr
    assert "has 2 labels" in ended.stderr


def _environment() -> dict[str, str]:
    """Ours, without the games that alfworld names in it where another test has imported it."""
    return {name: value for name, value in os.environ.items() if name != "ALFWORLD_DATA"}


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it does not come up"
        try:
            if httpx.get(url, timeout=5).json()["status"] == "healthy":
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
