"""A training run on real games goes on whatever is killed, and counts every episode once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentprm.config import load_config
from agentprm.registry import Registry
from agentprm.results import read_results

PRESET = Path(__file__).parent / "kill.toml"


def pid_of(run: Path, name: str) -> int:
    pid: int = orjson.loads((run / "processes.json").read_bytes())[name]["pid"]
    return pid


def records(run: Path, stage: str) -> list[dict[str, Any]]:
    file = run / "records" / f"{stage}.jsonl"
    if not file.exists():
        return []
    return [
        orjson.loads(line)
        for line in file.read_bytes().splitlines(keepends=True)
        if line[-1:] == b"\n"
    ]


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before the condition held"
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.1)


def start(run: Path, data: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentprm.cli", "train", "--run", str(run)]
    return subprocess.Popen([*command, "--preset", str(PRESET), "--games", str(data)])


@pytest.mark.games
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_survives_kill_9_of_its_processes(tmp_path: Path, alfworld_data: Path) -> None:
    run = tmp_path / "run"
    config = load_config(str(PRESET))
    process = start(run, alfworld_data)
    try:
        until(lambda: len(records(run, "demonstrations")) >= 1, process, 120)
        os.kill(pid_of(run, "rollout-1"), signal.SIGKILL)

        until(lambda: len(records(run, "pi_0-rollouts")) >= 1, process, 240)
        os.kill(pid_of(run, "trainer"), signal.SIGKILL)
        os.kill(pid_of(run, "rollout-2"), signal.SIGKILL)

        until(lambda: (run / "checkpoints" / "prm" / "0" / "STABLE").exists(), process, 240)
        until(lambda: len(records(run, "eval-pi_0-q_0")) >= 1, process, 240)
        os.kill(pid_of(run, "prm"), signal.SIGKILL)
        os.kill(pid_of(run, "redis"), signal.SIGKILL)

        # the whole machine: the same command goes on where it stopped
        until(lambda: any(run.glob("records/pi_1-preferences-*.jsonl")), process, 240)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        process = start(run, alfworld_data)
        assert process.wait(600) == 0
    finally:
        process.terminate()
        process.wait(60)

    plan = config.rollouts
    expected = {
        "demonstrations": config.demonstrations.games,
        "pi_0-rollouts": plan.games * plan.per_game,
        "eval-pi_0": config.evaluation.games,
        "eval-pi_0-q_0": config.evaluation.games,
        "eval-pi_1": config.evaluation.games,
        "eval-pi_1-q_0": config.evaluation.games,
    }
    for stage, count in expected.items():
        results = records(run, stage)
        ids = Counter(e["id"] for result in results for e in result["episodes"])
        assert len(ids) == count, f"{stage}: episodes lost"
        assert set(ids.values()) == {1}, f"{stage}: episodes counted twice"
    assert [row.policy for row in read_results(run)] == ["pi_0", "pi_0", "pi_1", "pi_1"]
    registry = Registry(run / "checkpoints")
    assert registry.versions("policy") == ["policy/0", "policy/1"]
    assert registry.versions("prm") == ["prm/0"]
