"""The command line on real games: a run that is killed often, then measured and served."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentprm.cli.ports import free_port
from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.config import load_config
from agentprm.protocol import ActRequest, Choice, CreateSessions, ScoreRequest, Split, State
from agentprm.registry import Registry
from agentprm.results import read_results

pytestmark = [pytest.mark.games, pytest.mark.slow, pytest.mark.timeout(900)]

PRESET = Path(__file__).parent / "kill.toml"


@pytest.fixture(autouse=True, scope="module")
def _interruptible() -> Iterator[None]:
    """Children take SIGINT, also where these tests run in the background of a shell."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, alfworld_data: Path) -> Path:
    """A finished run whose processes were killed by SIGKILL, each in the middle of its work."""
    run = tmp_path_factory.mktemp("e2e") / "run"
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
    return run


def test_no_episode_is_lost_or_counted_twice(run: Path) -> None:
    config = load_config(str(PRESET))
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


def test_eval_measures_a_checkpoint(run: Path, alfworld_data: Path) -> None:
    checkpoints = run / "checkpoints"
    command = [sys.executable, "-m", "agentprm.cli", "eval", "--games", str(alfworld_data)]
    command += ["--policy", str(checkpoints / "policy" / "1")]
    command += ["--prm", str(checkpoints / "prm" / "0"), "--best-of", "4"]
    command += ["--split", "valid_seen", "--count", "4", "--max-steps", "5", "--json"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=240)
    [row] = orjson.loads(answer.stdout)
    assert (row["games"], row["best_of"], row["max_steps"]) == (4, 4, 5)
    assert (row["policy"], row["prm"]) == ("pi_1", "q_0")
    assert 1 <= row["actions"] <= 5


def test_up_serves_a_run(run: Path, alfworld_data: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "agentprm.cli", "up", "--run", str(run)]
    command += ["--games", str(alfworld_data), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        output = process.stdout
        assert output is not None
        until(lambda: b"policy" in output.readline(), process, 120)
        with EnvClient(f"http://127.0.0.1:{port}") as env:
            [session] = env.create(CreateSessions(split=Split.VALID_SEEN, seed=1))
        state = State(
            task=session.game.task,
            observation=session.observation,
            admissible=tuple(session.admissible),
        )
        with PolicyClient(f"http://127.0.0.1:{port + 1}") as policy:
            answer = policy.act(ActRequest(states=[state], n=8, prm=True, seed=0))
        candidates = answer.results[0].candidates
        assert (answer.policy_version, answer.prm_version) == ("policy/1", "prm/0")
        assert sum(candidate.count for candidate in candidates) == 8
        values = [candidate.q for candidate in candidates if candidate.q is not None]
        assert len(values) == len(candidates)
        assert answer.results[0].best.q == max(values)
        choice = Choice(state=state, actions=[candidate.action for candidate in candidates])
        with PRMClient(f"http://127.0.0.1:{port + 2}") as prm:
            scores = prm.score(ScoreRequest(choices=[choice])).choices[0]
        assert scores == pytest.approx(values, abs=1e-5)
        play_by_chat(f"http://127.0.0.1:{port + 1}/v1", alfworld_data, tmp_path)
        killed_after_a_swap(run, f"http://127.0.0.1:{port + 1}", process)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def killed_after_a_swap(run: Path, url: str, process: subprocess.Popen[bytes]) -> None:
    """The policy serves after a kill what it was told to serve, not the newest."""
    with PolicyClient(url) as policy:
        policy.load("policy/0")
        os.kill(policy.health().pid or 0, signal.SIGKILL)

        def back() -> bool:
            try:
                return policy.health().version == "policy/0"
            except ServiceError:
                return False

        until(lambda: not back(), process, 60)
        until(back, process, 120)


def play_by_chat(url: str, data: Path, where: Path) -> None:
    """The ReAct baseline by the policy's own chat route."""
    command = [sys.executable, "-m", "agentprm.cli", "baseline", "react", "--url", url]
    command += ["--model", "policy", "--games", str(data), "--count", "2", "--max-steps", "3"]
    rows = []
    for _ in range(2):
        played = subprocess.run(
            [*command, "--json"], stdout=subprocess.PIPE, check=True, timeout=240, cwd=where
        )
        rows += orjson.loads(played.stdout)
        [file] = where.glob("runs/react/policy-*/records/eval-react.jsonl")
        assert len(file.read_bytes().splitlines()) == 1, "what was played is not played again"
    started = {log.stem for log in where.glob("runs/react/policy-*/logs/*.log")}
    assert started == {"env", "rollout-1", "rollout-2"}, "no model is started that nobody asks"
    row = rows[0]
    assert rows[1] == row
    assert (row["policy"], row["prm"], row["games"]) == ("ReAct(policy)", None, 2)
    assert 1 <= row["actions"] <= 3


def test_a_service_that_does_not_come_up_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentprm.cli", "baseline", "react", "--games", "/nowhere"]
    command += ["--url", "http://127.0.0.1:9", "--model", "nobody"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert answer.returncode == 1
    assert "alfworld-download" in answer.stderr
    assert "Traceback" not in answer.stderr
